import logging

# Where a CPU has bf16 instructions bitsandbytes, when PEFT imports it, asks for a package that would download a kernel;
# ranker/engine/policy.py leaves that kernel off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
