"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

The weights in model/ were made in four runs on two CPU cores, of 33, 27, 16 and 19 minutes, each run at its own commit:

    2bda347  python -m ranker.tiny --compile --out stage1
    53a7e53  python -m ranker.tiny --compile --init stage1 --steps 4000 --answer_weight 6 --out stage2
    892b5c6  python -m ranker.tiny --compile --init stage2 --steps 2400 --answer_weight 6 --seed 1 --out stage3
    710327d  python -m ranker.tiny --compile --init stage3 --steps 2600 --answer_weight 6 --seed 2 --out stage4

The first run taught the form and most of the reading, the second to decide as the trace says. After the third, with
more of recommendation, the model still guessed the genres of candidates; traces that name a candidate before reading
it cured that in the fourth. Built anew, the weights are equal bit for bit only on an equal machine, so there is a
checksum.
"""

SHA256 = "e39e981f13f5342a3658ed4d2b8c9b0473b5f73b8c05c5676c1e059730725cc9"  # of model/model.safetensors
