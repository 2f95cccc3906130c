"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

The file in model/ was made in three runs on two CPU cores, of 45, 12 and 12 minutes:

    python -m ranker.tiny --compile --out stage1                                                     at commit 3659d1d
    python -m ranker.tiny --compile --init stage1 --steps 1500 --lr 1e-3 --out stage2                at commit 6944b2d
    python -m ranker.tiny --compile --init stage2 --steps 1600 --lr 1.5e-3 --answer_weight 6 --seed 1   at commit 4fc7a47

The second taught it the wording of the routing tasks as it is now: the first one's (two strengths per model, in one
order for all objectives) it had learned to write but not to read. The third made it answer by its trace more often. Its
reading is right in about nineteen words of twenty; where the teacher's two ways to decide differ it follows the wrong
one in about half of its samples and the right one in about a sixth. Built anew it is equal bit for bit only on an equal
machine; so the file has a checksum.
"""

SHA256 = "cb3103aab366f4c8d37f4d77db366c5363a536b7fd0e02300799c7eb7bd05f23"  # of model/model.safetensors
