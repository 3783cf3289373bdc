"""k-NN classification, in memory that does not grow with either set, against the matrix product alone and its `topk`.

    python benchmarks/knn.py [--bank 50000] [--n 10000] [--d 384]

One thread, CPU time (best of the rounds), and the median over the rounds of its ratio to the bare product of the two
sets in the same blocks and the same round, whose results are thrown away: less no exact k-NN can do. The peer does what
DINO's official eval_knn does: a hundredth of the test set against the whole bank, `topk`, one-hot votes, a sort of the
classes. Memory: peak resident set above that before the call (Linux).
"""

import argparse
from statistics import median

from moments import cost  # sets one thread before torch is imported

import torch  # isort: skip

from analysis.measures import neighbors
from analysis.measures.neighbors import knn_accuracy

CHUNK, CLASSES, K = 128, 10, 200  # test rows at a time, as in `knn_accuracy`; the largest k of the official evaluation


def product(bank, test):
    for queries in test.split(CHUNK):
        for tile in bank.split(neighbors.BANK_TILE):
            queries @ tile.T


def official(bank, bank_labels, test, test_labels, k):
    bank, hits = bank.T, 0
    for queries, labels in zip(test.chunk(100), test_labels.chunk(100), strict=True):
        similarity, index = (queries @ bank).topk(k, largest=True, sorted=True)
        one_hot = torch.nn.functional.one_hot(bank_labels[index], CLASSES)
        votes = (one_hot * (similarity / 0.07).exp()[..., None]).sum(1)
        hits += (votes.sort(1, descending=True).indices[:, 0] == labels).sum().item()
    return hits / len(test)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, args.d, generator=generator) * 0.15
    labels = [torch.randint(CLASSES, (count,), generator=generator) for count in (args.bank, args.n)]
    bank, test = (
        torch.nn.functional.normalize(centers[y] + torch.randn(len(y), args.d, generator=generator)) for y in labels
    )
    data = bank, labels[0], test, labels[1]
    rows = {
        "matrix product alone": lambda: product(bank, test),
        "knn_accuracy, k = 20": lambda: knn_accuracy(*data, k=20),
        f"knn_accuracy, k = 10, 20, 100, {K}": lambda: knn_accuracy(*data, k=(10, 20, 100, K)),
        "official, k = 20": lambda: official(*data, k=20),
        f"official, k = {K}": lambda: official(*data, k=K),
    }
    print(f"{args.n} against {args.bank}, d = {args.d}, torch {torch.__version__}, one thread; target <= 1.2")
    print(f"{'':36s} {'CPU s':>8s} {'/product':>9s} {'extra MiB':>10s}")
    rounds = [{name: cost(function, repeat=1) for name, function in rows.items()} for _ in range(args.rounds)]
    for name in rows:
        seconds, memory = zip(*(r[name] for r in rounds), strict=True)
        ratio = median(r[name][0] / r["matrix product alone"][0] for r in rounds)
        print(f"{name:36s} {min(seconds):8.2f} {ratio:9.2f} {max(memory):10.0f}")
    ours, peer = knn_accuracy(*data, k=K).item(), official(*data, k=K)
    print(f"accuracy, k = {K}: {ours:.4f}, official {peer:.4f}")


if __name__ == "__main__":
    main()
