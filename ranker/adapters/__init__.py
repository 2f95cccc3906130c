"""Adapters: what of a model is trained. An adapter is one file here, chosen by `lora.name`.

A file NAME.py holds a dataclass `Options` and

    make(causal_lm, options) -> PeftModel     the model with a fresh adapter in fp32, drawn from torch's global
                                              generator; PEFT must be able to load what it saves
    after_step(policy, step, options)         optional: called behind every optimizer step that changed something

An example is lora.py.
"""

DEFAULT = "lora"
CONTRACT = {"make": ("causal_lm", "options"), "after_step": ("policy", "step", "options")}
OPTIONAL = {"after_step": lambda policy, step, options: None}
