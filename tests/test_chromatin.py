"""Peaks and fragments become gene activities, which every function takes; peaks of an unknown genome are refused."""

import gzip
import os
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from input_variants import without_pulling
from scipy import sparse

import scmmgpt
from scmmgpt.chromatin import FULL, UPSTREAM, Places, gene_positions, weights_of_genes
from scmmgpt.errors import UserError
from scmmgpt.loading import load

NUM_CELLS = 30
# mudata's own, of modalities that share names.
pytestmark = pytest.mark.filterwarnings("ignore:var_names are not unique:UserWarning")


@pytest.fixture(scope="module")
def loaded():
    return load(device="cpu")


def peaks_of(genome: str, names: str = "chr{}:{}-{}", number: int = 600) -> ad.AnnData:
    """Counts of peaks at starts of genes of one genome."""
    positions = gene_positions()[genome]
    chosen = np.random.default_rng(0).choice(len(positions.ids), number, replace=False)
    counts = np.random.default_rng(1).poisson(1, (NUM_CELLS, number)).astype(np.float32)
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.obs_names = [f"cell-{row}" for row in range(NUM_CELLS)]
    cells.var_names = [
        names.format(positions.chromosomes[gene], positions.starts[gene] - 250, positions.starts[gene] + 250)
        for gene in chosen
    ]
    cells.var_names_make_unique("~")
    return cells[:, ~cells.var_names.str.contains("~")].copy()


@pytest.mark.parametrize("genome", ["hg38", "hg19", "mm10"])
def test_the_genome_is_recognised_by_where_genes_start(genome):
    activity = scmmgpt.gene_activity(peaks_of(genome))

    assert activity.uns["scmmgpt_gene_activity"]["genome"] == genome
    assert activity.n_obs == NUM_CELLS


@pytest.mark.parametrize("names", ["chr{}-{}-{}", "chr{}_{}_{}", "{}:{}-{}", "GRCh38_chr{}:{}-{}"])
def test_peaks_may_be_named_in_every_usual_way(names):
    expected = scmmgpt.gene_activity(peaks_of("hg38"))

    found = scmmgpt.gene_activity(peaks_of("hg38", names))

    assert (found.X != expected.X).nnz == 0
    assert found.var_names.tolist() == expected.var_names.tolist()


def test_peaks_may_be_named_by_columns():
    cells = peaks_of("hg38")
    places = Places.of(cells)
    columns = pd.DataFrame({"chrom": places.chromosomes, "start": places.starts, "end": places.ends})
    other = ad.AnnData(cells.X, obs=cells.obs, var=columns.set_axis([f"peak{row}" for row in range(len(columns))]))

    assert (scmmgpt.gene_activity(other).X != scmmgpt.gene_activity(cells).X).nnz == 0


def test_a_cut_counts_less_the_farther_into_the_gene_and_not_at_all_outside():
    positions = gene_positions()["hg38"]
    gene = int(np.flatnonzero(positions.symbols == "CD19")[0])
    start, end = int(positions.starts[gene]), int(positions.ends[gene])
    direction = 1 if end > start else -1
    steps = np.array([-UPSTREAM - 50, -UPSTREAM + 50, 0, 2_000, 5_000, abs(end - start) + 50]) * direction
    cuts = start + steps
    places = Places(np.repeat(positions.chromosomes[gene], len(cuts)), cuts, cuts)

    weights = weights_of_genes(places, positions)[:, [gene]].toarray().ravel()

    assert weights[[0, -1]].tolist() == [0, 0]
    assert weights[1] == weights[2] == FULL
    assert weights[2] > weights[3] > weights[4] >= 1


def test_activities_are_sums_of_counts_by_these_weights():
    cells = peaks_of("hg38")
    positions = gene_positions()["hg38"]

    activity = scmmgpt.gene_activity(cells)

    expected = cells.X @ weights_of_genes(Places.of(cells), positions)
    kept = np.asarray(expected.sum(axis=0)).ravel() > 0
    np.testing.assert_array_equal(activity.X.toarray(), expected[:, kept].toarray())
    assert activity.var["feature_id"].tolist() == positions.ids[kept].tolist()


def test_fragments_count_with_both_ends(tmp_path):
    cells = peaks_of("hg38")
    places = Places.of(cells)
    rows, columns = cells.X.nonzero()
    with gzip.open(tmp_path / "fragments.tsv.gz", "wt") as file:
        file.write("# from a pipeline\n")
        for row, column in zip(rows, columns, strict=True):
            middle = (places.starts[column] + places.ends[column]) // 2
            place = f"chr{places.chromosomes[column]}\t{middle - 30}\t{middle + 30}"
            file.write(f"{place}\tcell-{row}\t1\n{place}\tanother cell\t1\n")

    found = scmmgpt.gene_activity(cells, tmp_path / "fragments.tsv.gz")

    expected = scmmgpt.gene_activity(ad.AnnData((cells.X > 0).astype(np.float32), obs=cells.obs, var=cells.var))
    shared = found.var_names.intersection(expected.var_names)
    assert len(shared) > 0.9 * expected.n_vars
    correlation = np.corrcoef(found[:, shared].X.toarray().ravel(), expected[:, shared].X.toarray().ravel())[0, 1]
    assert correlation > 0.95


def test_mudata_and_files_give_the_same_activities(tmp_path):
    cells = peaks_of("mm10")
    rna = ad.AnnData(np.ones((NUM_CELLS, 3)), obs=cells.obs[[]], var=pd.DataFrame(index=["Cd4", "Cd8a", "Cd19"]))
    with without_pulling():
        both = mudata.MuData({"rna": rna, "atac": cells})
        both.write(tmp_path / "both.h5mu")
    cells.write_h5ad(tmp_path / "peaks.h5ad")
    expected = scmmgpt.gene_activity(cells)

    for source in (both, tmp_path / "both.h5mu", tmp_path / "peaks.h5ad"):
        assert (scmmgpt.gene_activity(source).X != expected.X).nnz == 0


def test_of_genes_and_peaks_in_one_matrix_the_peaks_are_taken():
    """As Cell Ranger ARC writes them."""
    cells = peaks_of("hg38")
    genes = sparse.csr_matrix(np.ones((NUM_CELLS, 2000), np.float32))
    both = ad.AnnData(sparse.hstack([genes, cells.X], format="csr"), obs=cells.obs)
    both.var["feature_types"] = ["Gene Expression"] * 2000 + ["Peaks"] * cells.n_vars
    both.var_names = [*(f"GENE{number}" for number in range(2000)), *cells.var_names]

    assert (scmmgpt.gene_activity(both).X != scmmgpt.gene_activity(cells).X).nnz == 0


@pytest.mark.parametrize("kept_in", ["memory", "file"])
def test_every_function_takes_activities(loaded, tmp_path, kept_in):
    activity = scmmgpt.gene_activity(peaks_of("hg38"))
    if kept_in == "file":
        activity.write_h5ad(tmp_path / "activity.h5ad")
        activity = tmp_path / "activity.h5ad"

    annotated = scmmgpt.annotate(activity, ["B cell", "T cell", "neuron"], model=loaded, progress=False)
    embedded = scmmgpt.embed(activity, model=loaded, progress=False)

    assert annotated.uns["scmmgpt"]["genes"]["matrix_state"] == "counts"
    assert annotated.uns["scmmgpt"]["annotate"]["settings"]["temperature"] == 3.0
    assert embedded.obsm["X_scmmgpt"].shape[0] == NUM_CELLS


# ---- refused


def shifted(genome: str) -> ad.AnnData:
    cells = peaks_of(genome)
    places = Places.of(cells)
    cells.var_names = [
        f"chr{chromosome}:{start + 3_000_000}-{end + 3_000_000}"
        for chromosome, start, end in zip(places.chromosomes, places.starts, places.ends, strict=True)
    ]
    return cells


def test_peaks_of_another_genome_are_refused():
    with pytest.raises(UserError, match="another genome than hg38, hg19, mm10"):
        scmmgpt.gene_activity(shifted("hg38"))


def test_a_genome_that_the_peaks_contradict_is_refused():
    with pytest.raises(UserError, match="said to be of hg19, but lie at starts of genes of hg38"):
        scmmgpt.gene_activity(peaks_of("hg38"), genome="hg19")


def test_a_genome_without_positions_is_refused_by_its_name():
    with pytest.raises(UserError, match="not for 'danRer11'"):
        scmmgpt.gene_activity(peaks_of("hg38"), genome="danRer11")


def test_genes_are_no_peaks():
    cells = ad.AnnData(np.ones((4, 3)), var=pd.DataFrame(index=["CD3E", "CD4", "CD8A"]))

    with pytest.raises(UserError, match="not named like peaks"):
        scmmgpt.gene_activity(cells)


def test_peaks_given_as_genes_are_refused_with_the_remedy(loaded):
    with pytest.raises(UserError, match=r"scmmgpt\.gene_activity\(peaks\)"):
        scmmgpt.annotate(peaks_of("hg38"), model=loaded, progress=False)


def test_fragments_of_other_cells_are_refused(tmp_path):
    (tmp_path / "fragments.tsv").write_text("chr1\t1000\t1100\tsomeone\t1\n")

    with pytest.raises(UserError, match="has the barcode of one of the 30 cells"):
        scmmgpt.gene_activity(peaks_of("hg38"), tmp_path / "fragments.tsv")


def test_what_is_no_file_of_fragments_is_refused(tmp_path):
    (tmp_path / "fragments.tsv").write_text("one\ntwo\n")

    with pytest.raises(UserError, match="cannot be read as fragments"):
        scmmgpt.gene_activity(peaks_of("hg38"), tmp_path / "fragments.tsv")


# ---- real cells


def test_real_peaks_name_their_genome_and_their_cells_better_than_chance(loaded):
    if not os.environ.get("SCMMGPT_DATA"):
        pytest.skip("SCMMGPT_DATA names no folder of development cells")
    path = Path(os.environ["SCMMGPT_DATA"]).parent / "dev2" / "multiome" / "snareseq_mouse_cortex_chen2019.h5mu"
    if not path.exists():
        pytest.skip(f"there is no {path.name} beside the development cells")
    obs = mudata.read(f"{path}/rna").obs
    chosen = obs.index[(obs["cell_type"] != "Mis").to_numpy()][::4]

    activity = scmmgpt.gene_activity(path)[chosen].copy()

    truth = obs.loc[chosen, "cell_type"].astype(str)
    called = scmmgpt.annotate(activity, sorted(set(truth)), model=loaded, min_confidence=0, progress=False)
    shares = (called.obs["scmmgpt_cell_type"].astype(str) == truth).groupby(truth).mean()
    assert activity.uns["scmmgpt_gene_activity"]["genome"] == "mm10"
    assert shares.mean() > 0.2  # an eighth by chance
