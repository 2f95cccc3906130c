"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

The file in model/ was made in two runs on two CPU cores, 45 and 12 minutes:

    python -m ranker.tiny --compile --out stage1                                    at commit 3659d1d
    python -m ranker.tiny --compile --init stage1 --steps 1500 --lr 1e-3            at commit 6944b2d

The second taught it the wording of the routing tasks as it is now: the first one's (two strengths per model, in one
order for all objectives) it had learned to write but not to read. Built anew it is equal bit for bit only on an equal
machine; so the file has a checksum.
"""

SHA256 = "d5c7f20ae13a208b42caee37e9e84c7c31acc3edddac4c7c0419a95f38b28941"  # of model/model.safetensors
