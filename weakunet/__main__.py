"""python -m weakunet: the commands in the order in which they are used."""

COMMANDS = {
    "preprocess": "prepare raw scans for the network: mask, smooth, crop, rescale",
    "train": "learn from one count per scan where the lesions are",
    "predict": "find lesions: heatmaps, label images, pictures, tables",
    "evaluate": "compare predictions with known lesions and counts",
    "compare": "the paper's six methods side by side: its table and figures",
    "study": "what learning from counts depends on",
    "bench": "how fast each layer and a training step are",
}

if __name__ == "__main__":
    print("python -m weakunet.NAME --help shows what a command does and its options:\n")
    for name, about in COMMANDS.items():
        print(f"    {name:12}{about}")
