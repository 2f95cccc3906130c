"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

The file in model/ was made in four runs on two CPU cores, of 33, 27, 16 and 19 minutes:

    python -m ranker.tiny --compile --out stage1 at commit 2bda347 python -m ranker.tiny --compile --init stage1 --steps
    4000 --answer_weight 6 --out stage2 at commit 53a7e53 python -m ranker.tiny --compile --init stage2 --steps 2400
    --answer_weight 6 --seed 1 --out stage3 at commit 892b5c6 python -m ranker.tiny --compile --init stage3 --steps 2600
    --answer_weight 6 --seed 2 --out stage4 at commit 710327d

The first learned the form and most of the reading, the second to decide as its trace says. The third, with more of
recommendation, still guessed the genres of candidates; naming a candidate before reading it, in the fourth, cured that.
Built anew it is equal bit for bit only on an equal machine; so the file has a checksum.
"""

SHA256 = "e39e981f13f5342a3658ed4d2b8c9b0473b5f73b8c05c5676c1e059730725cc9"  # of model/model.safetensors
