"""Adapters: what of a model is trained. An adapter is one file here, chosen by `lora.name`.

A file NAME.py holds a dataclass `Options` and

    make(causal_lm, options) -> PeftModel     the model with a fresh adapter in fp32, drawn from torch's global
                                              generator; PEFT must be able to load what it saves
    begin(policy, options)                    optional: called when a policy is loaded that goes on learning; what it
                                              keeps in `policy.own` is saved and resumed
    after_step(policy, optimizer, options)    optional: called behind every optimizer step that changed something;
                                              returns what to log, summed over the optimizer steps of a step

Examples are lora.py and, of all three, prilora.py.
"""

DEFAULT = "lora"
CONTRACT = {"make": ("causal_lm", "options"), "begin": ("policy", "options"),
            "after_step": ("policy", "optimizer", "options")}
OPTIONAL = {"begin": lambda policy, options: None, "after_step": lambda policy, optimizer, options: {}}
