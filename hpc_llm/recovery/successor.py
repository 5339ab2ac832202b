"""`python -m hpc_llm.recovery.successor RUN_DIR` of earlier scripts: forwards to supervise/."""

from hpc_llm.supervise.successor import main

if __name__ == "__main__":
    raise SystemExit(main())
