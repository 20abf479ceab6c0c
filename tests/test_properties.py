"""Whatever somebody calls AnnData: a right answer or a reason, and never a change of what was given."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from scipy import sparse
from tiny_models import GENES, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.loading import load

# Cells as odd as these deserve any advice; a warning of numpy or pandas is a failure all the same.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
LAYOUTS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "coo": sparse.coo_matrix}
DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu", generative=True)


names = st.one_of(st.sampled_from(GENES), st.text(max_size=12), st.sampled_from(["", "nan", "TP53-1", "Ä", "😀"]))
numbers = st.one_of(st.integers(0, 30), st.sampled_from([0, 0.5, 1e30, -1.0, np.nan, np.inf]))
columns = st.sampled_from(
    [
        lambda n: pd.Categorical(["a"] * n),
        lambda n: [None] * n,
        lambda n: np.full(n, np.nan),
        lambda n: pd.array([True] * n, dtype="boolean"),
        lambda n: [f"<b>{i}</b>\u202e" for i in range(n)],
        lambda n: pd.date_range("2020", periods=n),
    ]
)


@st.composite
def any_cells(draw):
    """Cells as they come: few or none, known genes or not, any type, any layout, any names."""
    num_cells, num_genes = draw(st.integers(0, 4)), draw(st.sampled_from([0, 1, 19, 40, 100]))
    fill = draw(st.sampled_from(["counts", "logarithms", "anything"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    matrix = random.poisson(2, (num_cells, num_genes)).astype(float)
    if fill == "logarithms":
        matrix = np.log1p(matrix * 1.7)
    elif matrix.size and fill == "anything":
        for _ in range(3):
            matrix[random.integers(num_cells), random.integers(num_genes)] = draw(numbers)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = matrix.astype(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from([name for name in LAYOUTS if name != "coo"]))
    known = draw(st.booleans())
    var_names = GENES[:num_genes] if known else draw(st.lists(names, min_size=num_genes, max_size=num_genes))
    adata = anndata.AnnData(LAYOUTS[layout](matrix))
    adata.var_names = pd.Index(var_names, dtype=object)
    adata.obs_names = pd.Index(draw(st.lists(names, min_size=num_cells, max_size=num_cells)), dtype=object)
    adata.obs[draw(names)] = draw(columns)(num_cells)
    if draw(st.booleans()):
        adata.layers[draw(names)] = adata.X.copy()
    return adata


def same(first, second):
    dense = [part.toarray() if sparse.issparse(part) else np.asarray(part) for part in (first.X, second.X)]
    np.testing.assert_array_equal(*dense)
    assert first.obs.equals(second.obs)
    assert list(first.var_names) == list(second.var_names)
    assert list(first.obsm) == list(second.obsm)
    assert list(first.uns) == list(second.uns)


def answered_or_refused(work):
    """The result, or None where the input was refused; anything else is raised."""
    try:
        return work()
    except UserError:
        return None


def check_verbs(adata, model):
    before = adata.copy()

    embedded = answered_or_refused(lambda: scmmgpt.embed(adata, model=model, progress=False))
    annotated = answered_or_refused(lambda: scmmgpt.annotate(adata, ["T cell", "B cell"], model=model, progress=False))

    same(adata, before)
    assert (embedded is None) == (annotated is None)
    if embedded is not None:
        assert np.allclose(np.linalg.norm(embedded.obsm["X_scmmgpt"], axis=1), 1, atol=1e-4)
        assert annotated.obs["scmmgpt_confidence"].between(0, 1).all()


@settings(max_examples=12, **QUIET)
@given(adata=any_cells())
def test_any_cells_are_answered_or_refused(model, adata):
    check_verbs(adata, model)


@pytest.mark.slow
@settings(max_examples=300, **QUIET)
@given(adata=any_cells())
def test_hundreds_of_any_cells_are_answered_or_refused(model, adata):
    check_verbs(adata, model)


class Calls(RuleBasedStateMachine):
    """Any order of calls over the same cells."""

    loaded = None
    keys = st.sampled_from(["scmmgpt", "mine", "ä b"])

    @initialize(num_cells=st.integers(1, 12))
    def begin(self, num_cells):
        self.given = tiny_cells(num_cells)
        self.matrix = self.given.X.copy()
        self.adata = self.given

    def call(self, verb, key, overwrite, *arguments, **options):
        options |= {"model": self.loaded, "key_added": key, "overwrite": overwrite, "progress": False}
        result = answered_or_refused(lambda: verb(self.adata, *arguments, **options))
        if result is not None:
            assert verb.__name__ in result.uns[key]
            self.adata = result

    @rule(key=keys, overwrite=st.booleans())
    def embed(self, key, overwrite):
        self.call(scmmgpt.embed, key, overwrite)

    @rule(key=keys, overwrite=st.booleans(), labels=st.lists(names, max_size=4), least=st.sampled_from([0, 0.5, 2]))
    def annotate(self, key, overwrite, labels, least):
        self.call(scmmgpt.annotate, key, overwrite, labels, min_confidence=least)

    @rule(key=keys, overwrite=st.booleans(), cluster_key=st.sampled_from([None, "leiden", "absent"]))
    def describe(self, key, overwrite, cluster_key):
        self.call(scmmgpt.describe, key, overwrite, cluster_key=cluster_key, max_new_tokens=2)

    @rule(text=st.text(max_size=20), top=st.integers(1, 20))
    def search(self, text, top):
        hits = answered_or_refused(
            lambda: scmmgpt.search(self.adata, text, top=top, model=self.loaded, progress=False)
        )
        assert hits is None or len(hits) == min(top, self.adata.n_obs)

    @rule(text=st.text(max_size=20), num_cells=st.integers(1, 3), seed=st.integers(0, 3))
    def generate(self, text, num_cells, seed):
        options = {"seed": seed, "model": self.loaded, "progress": False}
        made = [answered_or_refused(lambda: scmmgpt.generate_cells(text, num_cells, **options)) for _ in range(2)]
        assert made[0] is None or (made[0].X != made[1].X).nnz == 0

    @invariant()
    def the_given_cells_are_untouched(self):
        if hasattr(self, "given"):
            assert (self.matrix != self.given.X).nnz == 0
            assert "scmmgpt" not in self.given.uns
            assert (self.matrix != self.adata.X).nnz == 0


def run_calls(model, num_runs, num_calls):
    Calls.loaded = model
    run_state_machine_as_test(Calls, settings=settings(max_examples=num_runs, stateful_step_count=num_calls, **QUIET))


def test_any_order_of_calls_keeps_its_promises(model):
    run_calls(model, num_runs=3, num_calls=8)


@pytest.mark.slow
def test_long_sequences_of_calls_keep_their_promises(model):
    run_calls(model, num_runs=60, num_calls=40)
