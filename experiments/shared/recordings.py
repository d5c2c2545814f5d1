"""``python -m experiments.shared.recordings CLONE FOLDER``: spoken digits in one file.

CLONE is a clone of https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0).
"""

import sys
from pathlib import Path

import numpy as np
from scipy.io import wavfile


def main(clone: str, folder: str) -> None:
    """Write ``spoken_digits.npz``."""
    paths = sorted(Path(clone, "recordings").glob("*.wav"))
    samples = [wavfile.read(path)[1].astype(np.int16) for path in paths]
    Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        Path(folder, "spoken_digits.npz"),
        names=np.array([path.stem for path in paths]),
        ends=np.cumsum([len(wave) for wave in samples]),
        samples=np.concatenate(samples),
    )
    print(f"{len(paths)} recordings in {Path(folder, 'spoken_digits.npz')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
