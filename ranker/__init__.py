import logging

# Where a CPU has bf16 instructions bitsandbytes, when PEFT imports it, asks for a package that would download a kernel;
# ranker/engine/policy.py leaves that kernel off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str):
    """Import `load` when it is first asked for: `import ranker` alone loads nothing heavy."""
    if name == "load":
        from ranker.use import load
        return load
    raise AttributeError(f"module 'ranker' has no attribute '{name}'")
