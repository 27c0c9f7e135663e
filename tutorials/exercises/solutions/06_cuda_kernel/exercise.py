def blocks_needed(n, threads):
    return -(-n // threads)
