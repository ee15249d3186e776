# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, resuming, and checks of a run.

    checkpoint   checkpoints on the disk, which are complete or do not exist
    same_run     whether a run may continue from a checkpoint
    choose       which checkpoint a run continues from
    progress     the memory of a process between two updates, in files
    save         all processes write one checkpoint together
    sigterm      SIGTERM saves a checkpoint and ends the run
    resume       the three together, as one mixin for a trainer
    nonfinite    NaN and infinity stop a run or are skipped
    replay       the update scores the thoughts that the rollout has drawn

`host`, `processes` and `disk` serve these. The room knows the record and the thinking settings. It does not know the
trainers: they are made from its mixins.
"""
