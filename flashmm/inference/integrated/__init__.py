"""Tests that integrate over the variance ratios, which all features share a prior of.

With V = sigma2 (I + sum_i gamma_i Z G_i Z') and the ratios gamma on a grid, V at a grid point is
the same for all features up to sigma2. So a grid point is one factorisation for all of them, and

1. `grid`: ratios on straight lines, along each of which one eigendecomposition serves all points;
2. `shared`: what a design says at every point: quadratic forms, log-determinants, estimates and
   variances of linear functions of beta and b;
3. `prior`: residual variances as limma has them, weights of the grid points by EM over features;
4. `posterior`: each feature's weights of the grid points, its residual variance integrated out;
5. `mixtures`: p-values and limits as means of Student and F tests over the posterior;
6. `variances`: variances and their shares under the same posterior;
7. `integration`: all of it for many features, a chunk at a time within a memory budget.
"""
