"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

The file in model/ was made in three runs on two CPU cores, of 33, 27 and 16 minutes:

    python -m ranker.tiny --compile --out stage1                                                              at commit 2bda347
    python -m ranker.tiny --compile --init stage1 --steps 4000 --answer_weight 6 --out stage2                 at commit 53a7e53
    python -m ranker.tiny --compile --init stage2 --steps 2400 --answer_weight 6 --seed 1 --out stage3        at commit 892b5c6

The first learned to read and to write the form, the second to decide as its trace says, the third the genres of
recommendation, its largest vocabulary. Built anew it is equal bit for bit only on an equal machine; so the file has a
checksum.
"""

SHA256 = "c9e9c3c8f5fb75af5985e3a0168e630e023ec22e2c65d704011393b9578bb325"  # of model/model.safetensors
