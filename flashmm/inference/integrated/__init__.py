"""Tests that integrate over the variance ratios, which all features share a prior of.

With V = sigma2 (I + sum_i gamma_i Z G_i Z') and the ratios gamma on a grid, V at a grid point is
the same for all features up to sigma2. So a grid point is one factorisation for all of them, and

1. `grid`: ratios on straight lines, along each of which one eigendecomposition serves all points;
2. `shared`: what a design says at every point: quadratic forms, log-determinants, estimates and
   variances of linear functions of beta and b;
3. `prior`: residual variances as limma has them, weights of the grid points by EM over features;
4. `scaling`: where ratios follow the residual variance, the prior moved for each feature;
5. `posterior`: each feature's weights of the grid points, its residual variance integrated out;
6. `mixtures`: p-values and limits as means of Student and F tests over the posterior;
7. `variances`: variances and their shares under the same posterior;
8. `integration`: all of it for many features, a chunk at a time within a memory budget;
9. `learning`: the prior learned from all of them.
"""
