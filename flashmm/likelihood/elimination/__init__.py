"""The engines that eliminate blocks of Z'Z + theta: one block per level or nest of levels."""
