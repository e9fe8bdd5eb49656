"""Write the ONNX files of scikit-learn's trees that the tests read, and what scikit-learn and ONNX Runtime answer.

    pip install scikit-learn==1.9.1 skl2onnx==1.20.0 onnx==1.23.2 onnxruntime==1.32.0
    python tests/data/onnx/write.py

These wrote the files that lie here. For each there are rows (held out, and on and beside thresholds), what
`predict_proba` says of them, and what ONNX Runtime does.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier

HERE = Path(__file__).parent
HELD = {"cancer": 150, "wine": 60}
DATA = {"cancer": load_breast_cancer, "wine": load_wine}
MODELS = {
    "forest": RandomForestClassifier(12, max_depth=5, random_state=0),
    "extra": ExtraTreesClassifier(12, max_depth=5, random_state=0),
    "tree": DecisionTreeClassifier(max_depth=4, min_samples_leaf=4, random_state=0),
    "boosted": GradientBoostingClassifier(n_estimators=10, max_depth=3, random_state=0),
    "hist": HistGradientBoostingClassifier(max_iter=10, max_depth=3, random_state=0),
}
LEFT_OUT = {("cancer", "extra"), ("wine", "tree")}
BESIDE = 120


def rows_of(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (N, D) float32 and labels (N,), shuffled; the first are held out."""
    features, labels = DATA[data](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


def beside_thresholds(onnx: object, rows: np.ndarray) -> np.ndarray:
    """Return rows of which one value is a threshold, or the float32 next to it."""
    (node,) = (node for node in onnx.graph.node if node.op_type == "TreeEnsembleClassifier")
    attributes = {it.name: it for it in node.attribute}
    splits = [index for index, mode in enumerate(attributes["nodes_modes"].strings) if mode != b"LEAF"]
    generator = np.random.default_rng(1)
    found = rows[generator.integers(0, len(rows), BESIDE)].copy()
    for index, split in enumerate(generator.choice(splits, BESIDE)):
        value = np.float32(attributes["nodes_values"].floats[split])
        place = attributes["nodes_featureids"].ints[split]
        found[index, place] = (value, np.nextafter(value, np.float32(np.inf)), np.nextafter(value, np.float32(0)))[
            index % 3
        ]
    return found


def main() -> None:
    """Write them."""
    for data in DATA:
        features, labels = rows_of(data)
        held = HELD[data]
        for name, model in MODELS.items():
            if (data, name) in LEFT_OUT:
                continue
            model.fit(features[held:], labels[held:])
            # The dictionaries that skl2onnx makes by default, of one in two.
            options = {} if name in ("forest", "boosted") else {id(model): {"zipmap": False}}
            onnx = to_onnx(model, features[:1], options=options)
            rows = np.concatenate([features[:held], beside_thresholds(onnx, features)])
            session = onnxruntime.InferenceSession(onnx.SerializeToString(), providers=["CPUExecutionProvider"])
            answer = session.run(None, {"X": rows})[1]
            if isinstance(answer, list):
                answer = np.array([[it[label] for label in sorted(it)] for it in answer], dtype=np.float32)
            proba = model.predict_proba(rows)
            print(data, name, "scikit-learn and ONNX Runtime differ by", np.abs(answer - proba).max())  # noqa: T201
            (HERE / f"{data}-{name}.onnx").write_bytes(onnx.SerializeToString())
            np.savez_compressed(HERE / f"{data}-{name}.npz", rows=rows, proba=proba, onnx=answer)


if __name__ == "__main__":
    main()
