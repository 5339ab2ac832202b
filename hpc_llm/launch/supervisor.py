"""`python -m hpc_llm.launch.supervisor RUN_DIR` of copied scripts: forwards to
hpc_llm.supervise.
"""

from hpc_llm.supervise.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
