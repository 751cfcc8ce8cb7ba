"""ExPLoRA: domain-adaptive pretraining on unlabelled images (Khanna et al., arXiv 2406.10973).

In: a trained backbone and images without labels. Out: the same backbone, adapted to them, as a
folder that `--weights` takes. The last blocks train in full, the others through low-rank adapters
that are merged at the end.

    config      the settings; no heavy import
    images      which images are read, and which must never be
    adapt       adapters on, blocks unfrozen, merged again
    masking     which patches are hidden; the encoder over the others alone
    views       crops and colours
    mae         objective: paint the hidden patches (arXiv 2111.06377)
    distill     objective: agree with an averaged teacher (arXiv 2104.14294, 2111.07832, 2304.07193)
    health      has the representation collapsed?
    output      explora.json, the backbone folder, `load_adapted`
    training    the loop
    start       the backbone to start from; what explora.json says
    run         `run_explora`, from request to result
    command     `cascade-train explora`
"""
