"""FLASHMM 1.3.0: four fits of the simulated cells, and the cells of Kang et al.

Differences measured (largest over all genes): simulated fits 5e-10 relative in coefficients,
standard errors and t; theta 3e-9 of its standard error; log-likelihood 3e-9. FLASHMM stops at
a score of 1e-5, which leaves about that much.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import problems as pb
import pytest
import references as ref
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm import ConvergenceWarning
from flashmm.inference.contrasts import r_name

FITS = ("1comp_reml", "1comp_ml", "2comp_reml", "2comp_ml")
ALTERNATIVES = {"two.sided": "two-sided", "greater": "greater", "less": "less"}
# Where FLASHMM did not converge (RPL19 stopped at 1.1e-5, six at the iteration limit).
UNFINISHED = ["YWHAQ", "FNDC3B", "PDCD6", "UQCRQ", "VMO1", "RPL19", "RPS28"]

each_fit = pytest.mark.parametrize("name", FITS)


@cache
def model(name):
    cells, counts = ref.simulated()
    random = ["~ 0 + sam"] + (["~ 0 + location"] if name.startswith("2") else [])
    return fm.MultiLMM.from_formula(
        "~ 0 + log(libsize) + cls + cls:trt", random, cells, counts, transform="log2p1"
    )


@cache
def fit(name):
    return model(name).fit(name.split("_")[1].upper())


def constant(result):
    """FLASHMM's REML logLik is larger by 1/2 log|X'X|."""
    return 0.5 * np.linalg.slogdet(result.stats.XX)[1] if result.method == "REML" else 0.0


def r_level_names(blup):
    return [
        f"{g}{level}" for g, level in zip(blup["group"].data, blup["group_level"].data, strict=True)
    ]


# ---- simulated cells -------------------------------------------------------------------------


@each_fit
def test_coefficients_come_in_the_same_order(name):
    theirs = ref.simulated_fit(name)["coef"].columns.tolist()
    assert [r_name(column) for column in fit(name).params] == theirs
    assert fit(name).params.index.tolist() == ref.simulated_fit(name)["coef"].index.tolist()


@each_fit
def test_fixed_effects_of_simulated_cells(name):
    reference, result = ref.simulated_fit(name), fit(name)
    assert result.converged.all()
    assert_allclose(result.params, reference["coef"], rtol=1e-6)
    assert_allclose(result.bse, reference["se"], rtol=1e-6)
    assert_allclose(result.tvalues, reference["t"], rtol=1e-6)
    assert_allclose(result.t_test(df="residual").pvalue, reference["p"], rtol=1e-6)


@each_fit
def test_variance_components_of_simulated_cells(name):
    reference, result = ref.simulated_fit(name), fit(name)
    theta, se = reference["theta"].to_numpy(), reference["setheta"].to_numpy()
    # Some variances are nearly zero (0.018 standard errors), where relative error means little;
    # the unit is the standard error. All are within 3e-8 relative too.
    assert_allclose(result.theta / se, theta / se, rtol=0, atol=1e-6)
    assert_allclose(result.theta, theta, rtol=1e-6)
    assert_allclose(result.bse_theta, se, rtol=1e-6)
    unconstrained = name.startswith("2")
    assert (result.theta < 0).to_numpy().any() == unconstrained


@each_fit
def test_loglik_of_simulated_cells_after_the_constant(name):
    reference, result = ref.simulated_fit(name), fit(name)
    assert_allclose(result.llf + constant(result), reference["logLik"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["1comp_reml", "2comp_reml"])
def test_random_effects_of_simulated_cells(name):
    reference = ref.simulated_blup(name)
    blup = fit(name).blup()
    ours = pd.DataFrame(blup.data, index=blup["feature"].data, columns=r_level_names(blup))
    assert sorted(ours) == sorted(reference)
    theirs = reference[ours.columns]
    # The unit is each gene's largest effect: single effects may be as good as zero.
    unit = theirs.abs().max(axis=1).to_numpy()[:, None]
    assert_allclose(ours / unit, theirs / unit, rtol=0, atol=1e-6)
    assert_allclose(ours, theirs, rtol=1e-5)


def test_information_and_covariance_matrices_of_simulated_cells():
    reference, result = ref.simulated_matrices(), fit("2comp_reml")
    fim = result.fim(reference["features"])
    assert_allclose(fim["FIM_theta"], reference["FIM_theta"], rtol=1e-6)
    assert_allclose(fim["FIM_beta"], reference["FIM_beta"], rtol=1e-6)
    covariance = result.cov_params(reference["features"])
    assert_allclose(covariance, reference["cov_beta"], rtol=1e-6)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_contrast_tests_of_simulated_cells(alternative):
    reference = ref.simulated_lmmtest(alternative)
    treatments = [f"cls{k}:trtB" for k in (1, 2, 3, 4)]
    contrasts = {
        "BvsA": f"({' + '.join(treatments)})/4",
        "c1v2": "cls1:trtB - cls2:trtB",
    }
    options = {"alternative": ALTERNATIVES[alternative], "df": "residual"}
    test = fit("1comp_reml").t_test(contrasts, **options)
    for ours, theirs in ((test.effect, "coef"), (test.tvalue, "t"), (test.pvalue, "p")):
        assert ours.columns.tolist() == ["BvsA", "c1v2"]
        assert_allclose(ours, reference[theirs], rtol=1e-6)
    by_matrix = fit("1comp_reml").t_test(
        fm.contrast_matrix(contrasts, fit("1comp_reml").params.columns), **options
    )
    assert_allclose(by_matrix.pvalue, test.pvalue, rtol=1e-12)


# ---- Kang et al. -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kang_model():
    cells, counts, _ = ref.kang()
    return fm.MultiLMM.from_formula(
        "~ 0 + log(libsize) + cluster_id + cluster_id:group_id",
        "~ 0 + sample_id",
        cells,
        counts,
        transform="log2p1",
    )


@pytest.fixture(scope="module")
def kang(kang_model):
    with pytest.warns(ConvergenceWarning, match="^214 of 1267 features .* 214 indefinite"):
        return kang_model.fit()


@pytest.fixture(scope="module")
def kang_reference():
    return ref.kang_fit()


@pytest.fixture(scope="module")
def finished(kang_reference):
    """Genes where FLASHMM converged, shape (1267,)."""
    return (kang_reference["dlogL"].abs().max(axis=1) <= 1e-5).to_numpy()


@pytest.fixture(scope="module")
def plain(kang):
    """Return the general likelihood at our estimates."""
    return pb.evaluate(kang.stats, kang.theta.to_numpy(), "REML")


def test_every_gene_ends_at_a_stationary_point_in_at_most_30_iterations(kang, plain):
    assert kang.converged.shape == (1267,)
    assert kang.converged.all()
    assert kang.n_iter.max() <= 30
    assert kang.status.value_counts().to_dict() == {"converged": 1053, "indefinite": 214}
    unit = np.sqrt(np.diagonal(plain.expected, axis1=1, axis2=2))
    assert np.abs(plain.score / unit).max() <= 1e-7
    # and at a maximum: the observed information is positive definite
    observed = plain.observed / (unit[:, :, None] * unit[:, None, :])
    assert (np.linalg.eigvalsh(observed)[:, 0] > 0).all()
    assert_allclose(kang.llf, plain.loglik, rtol=1e-12)


def test_flashmm_missed_seven_genes(finished):
    genes = np.array(ref.kang().genes)
    assert finished.sum() == 1260
    assert genes[~finished].tolist() == UNFINISHED


def test_genes_that_flashmm_finished_have_its_estimates(kang, kang_reference, finished):
    """The gaps measured: coefficients 6e-9 of a standard error, theta 9e-10, logLik 8e-9."""

    def both(ours, theirs):
        return ours.to_numpy()[finished], kang_reference[theirs].to_numpy()[finished]

    se, their_se = both(kang.bse, "se")
    missing = np.isnan(their_se)
    assert missing.any(axis=1).sum() == 50
    assert (np.isnan(se) == missing).all()
    # 6e-9, but for NDUFA1 2e-7: an se so close to zero that cov(beta) is nearly indefinite.
    assert_allclose(se[~missing], their_se[~missing], rtol=1e-6)
    coef, their_coef = both(kang.params, "coef")
    assert_allclose(coef, their_coef, rtol=1e-6)
    t, their_t = both(kang.tvalues, "t")
    assert_allclose(t[~missing], their_t[~missing], rtol=1e-6)
    theta, their_theta = both(kang.theta, "theta")
    their_se_theta = kang_reference["setheta"].to_numpy()[finished]
    # Some variances are nearly zero: the unit is the standard error.
    assert_allclose(theta / their_se_theta, their_theta / their_se_theta, rtol=0, atol=1e-6)
    assert_allclose(kang.bse_theta.to_numpy()[finished], their_se_theta, rtol=1e-6)
    loglik, their_loglik = both(kang.llf + constant(kang), "logLik")
    assert_allclose(loglik, their_loglik, rtol=0, atol=1e-6)


def test_genes_that_flashmm_missed_have_a_higher_likelihood(kang, kang_reference, finished):
    gain = (kang.llf + constant(kang)).to_numpy() - kang_reference["logLik"].to_numpy()
    assert (gain[~finished] >= -1e-6).all()
    # RPL19 had arrived but for rounding; the others gain between 3e-4 and 1.2.
    assert (np.sort(gain[~finished])[1:] > 1e-4).all()


def test_v_is_indefinite_exactly_where_the_status_says_so(kang):
    theta = kang.theta.to_numpy()
    largest = kang.stats.ZZ.diagonal().max()  # Z'Z is diagonal: cells per sample
    smallest = 1 + theta[:, 0] / theta[:, 1] * largest
    assert ((smallest <= 0) == (kang.status == "indefinite")).all()
    has_nan = kang.bse.isna().any(axis=1)
    assert has_nan.sum() == 57
    assert (kang.status[has_nan] == "indefinite").all()


def test_next_to_the_edge_the_end_does_not_depend_on_the_start(kang_model, kang):
    """The correlation of FNDC3B's two estimates is -1 + 5e-8."""
    gene = ref.kang().genes.index("FNDC3B")
    one = fm.MultiLMM(kang_model.stats.take([gene]))
    unit = kang.bse_theta.to_numpy()[gene]
    for start in ([-3e-4, 0.13], [0.01, 0.13], [-3.8194e-4, 0.1337688]):
        with pytest.warns(ConvergenceWarning, match="1 indefinite"):
            again = one.fit(theta0=np.array(start)).theta.to_numpy()
        assert np.abs((again - kang.theta.to_numpy()[gene]) / unit).max() < 1e-8


def test_of_two_maxima_the_fit_ends_at_the_one_of_flashmm(kang_model, kang, kang_reference):
    """LRRFIP1 has a second maximum, 1.1 higher, next to the edge of the domain."""
    gene = ref.kang().genes.index("LRRFIP1")
    one = fm.MultiLMM(kang_model.stats.take([gene]))
    sigma2 = float(kang.theta.iloc[gene, 1])
    largest = np.linalg.eigvalsh(
        one.stats.ZZ.toarray() - one.stats.ZX @ np.linalg.solve(one.stats.XX, one.stats.ZX.T)
    )[-1]
    near_the_edge = [-0.999 / largest * sigma2, sigma2]
    with pytest.warns(ConvergenceWarning, match="1 indefinite"):
        default, other = one.fit(), one.fit(theta0=near_the_edge)
    assert default.converged.all()
    assert other.converged.all()
    theirs = kang_reference["logLik"].iloc[gene] - constant(kang)
    assert default.llf.iloc[0] == pytest.approx(theirs, rel=0, abs=1e-6)
    assert other.llf.iloc[0] - theirs == pytest.approx(1.0965, abs=1e-3)
    at = pb.evaluate(one.stats, other.theta.to_numpy(), "REML")
    unit = np.sqrt(np.diag(at.expected[0]))
    # theta carries 16 digits; where 1 + gamma lambda = 4e-6, ten of them are left of it
    assert np.abs(at.score[0] / unit).max() <= 1e-7
