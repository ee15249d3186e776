# SPDX-License-Identifier: Apache-2.0
"""How keyed noise divides its counter: a stream for each distribution, positions below them, attempts above candidates."""

POSITION_BITS = 28
# One stream a distribution, so that a token's Gumbel number and a coordinate's normal number never coincide.
GUMBEL, NORMAL, UNIFORM, GAMMA = range(4)
# Marsaglia and Tsang accept at least 95 % of attempts, so all of them fail once in 10**20 draws. The first is taken then: a
# finite number, and the law is that of the gamma distribution but for this probability.
ATTEMPTS = 16
ATTEMPT_SHIFT = 24  # candidates are below 2**24
