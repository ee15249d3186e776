# SPDX-License-Identifier: Apache-2.0
"""How keyed noise divides its counter: streams lie above positions, and attempts above candidates."""

POSITION_BITS = 28
# One stream for each distribution, so that a token's Gumbel number and a coordinate's normal number never coincide.
# Gates have their own stream, so that a decision is independent of the draw after it.
GUMBEL, NORMAL, UNIFORM, GAMMA, GATE = range(5)
# Marsaglia and Tsang accept at least 95 % of attempts, so all of them fail once in 10**20 draws. Then the first attempt is
# used: a finite number. Apart from this probability, the law is the gamma distribution.
ATTEMPTS = 16
ATTEMPT_SHIFT = 24  # candidates are below 2**24
