"""The built-in policy: a Qwen3 of about a million parameters, its tokenizer, and the code that made them.

    python -m ranker.tiny --compile          made the files in model/, in about MINUTES minutes on two cores

It can be built anew by anybody, but equal bit for bit only on an equal machine; so the file has a checksum.
"""

SHA256 = ""  # of model/model.safetensors
