"""What the report says about its numbers."""

from __future__ import annotations

DEFINITIONS = """
<p>For a phase, TP, FP and FN count frames: rightly predicted, wrongly predicted, missed. Precision = TP / (TP + FP),
recall = TP / (TP + FN), Jaccard = TP / (TP + FP + FN), F1 = 2 TP / (2 TP + FP + FN). Phases are always the full list,
never only those that happen to occur. Frames without label are left out.</p>
<dl class="words">
<dt>Pooled</dt>
<dd>All frames of all videos counted together, so that long videos weigh more. Macro: the mean over all phases, where an
undefined score counts as 0.</dd>
<dt>Video-wise</dt>
<dd>Computed in each video, then averaged; long and short videos weigh the same. The standard deviation (n - 1) is over
videos or over phases, as named.</dd>
<dt>Strategies A and B</dt>
<dd>What happens to a phase that is missing from a video. If it is neither there nor predicted, all its scores are left
out. If it is predicted though not there, A counts precision, F1 and Jaccard as 0 and leaves recall out; B leaves all
out. If it is there but never predicted, recall, F1 and Jaccard are 0 and precision is left out in both.</dd>
<dt>Three averages</dt>
<dd>They differ as soon as something is left out. Video-macro: the mean over the phases of each video, then over videos.
Cell mean: the mean over all pairs of video and phase. Phase-macro: the mean over the videos of each phase, then over
phases. F1 is always a mean of F1s, never the F1 of mean precision and mean recall.</dd>
<dt>Segmental</dt>
<dd>Edit score: 1 minus the edit distance between the two sequences of segments, divided by the length of the longer
one. F1@10, 25, 50: a predicted segment is right if it overlaps a true segment of the same phase, not yet taken, with an
intersection over union of at least 10, 25 or 50 %; counted over the segments of all videos.</dd>
<dt>Relaxed</dt>
<dd>Near the start of a true segment, a phase that may come before it is forgiven; near its end, one that may follow.
Precision and recall are cut at 1. Comparable only with the same graph, window and sampling rate.</dd>
<dt>Intervals</dt>
<dd>Percentile bootstrap over patients: whole patients are drawn with replacement, because frames of one patient are
alike. Differences are paired: both predictions are scored on the same patients drawn.</dd>
<dt>Expected calibration error</dt>
<dd>The mean distance between confidence and accuracy over bins of equal width, weighted by their frames; confidence is
the probability of the predicted phase.</dd>
</dl>
<p>References: I. Funke, D. Rivoir, S. Speidel, "Metrics Matter in Surgical Phase Recognition", 2023, arXiv 2305.13961
(strategies, averages, relaxed numbers). Y. A. Farha, J. Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (segmental numbers). M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well
Calibrated Probabilities Using Bayesian Binning", AAAI 2015 (calibration error). B. Efron, R. J. Tibshirani,
"An Introduction to the Bootstrap", 1993.</p>
"""
