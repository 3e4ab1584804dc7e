"""The cfg keys that :mod:`utils.darknet.parse` does not interpret, by section; "any" stands for every section."""

# Keys of Darknet's own training, speed and drawing, and OpenCV's thresh. They stay in the cfg and have no effect here.
TRAINING_ONLY = {
    section: set(names.split())
    for section, names in {
        "any": "clip onlyforward dont_update burnin_update stopbackward train_only_bn learning_rate stream wait_stream",
        "net": """
            batch subdivisions time_steps max_batches momentum decay learning_rate learning_rate_min burn_in policy
            power sgdr_cycle sgdr_mult gamma scale step steps scales seq_scales num_steps adam B1 B2 eps
            ema_alpha loss_scale label_smooth_eps letter_box resize_step random angle aspect saturation exposure hue
            flip max_crop min_crop blur gaussian_noise mosaic mosaic_bound cutmix mixup notruth track augment_speed
            sequential_subdivisions init_sequential_subdivisions dynamic_minibatch optimized_memory
            workspace_size_limit_MB inputs log_step show_receptive_field max_chart_loss try_fix_nan
            weights_reject_freq equidistant_point badlabels_rejection_percentage num_sigmas_reject_badlabels
            adversarial_lr attention contrastive contrastive_jit_flip contrastive_color unsupervised""",
        "convolutional": "assisted_excitation grad_centr angle dot",
        "dropout": "dropblock dropblock_size_rel dropblock_size_abs",
        "yolo": """
            max jitter resize random ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer
            cls_normalizer obj_normalizer delta_normalizer max_delta objectness_smooth label_smooth_eps focal_loss
            counters_per_class map nms_kind beta_nms show_details track_history_size sim_thresh dets_for_track
            dets_for_show track_ciou_norm thresh""",
    }.items()
}

# Keys that change what a layer computes and that we do not support: only their neutral value is accepted.
NOT_BUILT = {
    "any": {"dontload": 0, "dontloadscales": 0},
    "convolutional": {
        "antialiasing": 0,
        "binary": 0,
        "bin_output": 0,
        "xnor": 0,
        "flipped": 0,
        "coordconv": 0,
        "deform": 0,
        "sway": 0,
        "rotate": 0,
        "stretch": 0,
        "stretch_sway": 0,
        "reverse": 0,
        "share_index": -1000000000,
    },
    "maxpool": {"antialiasing": 0, "maxpool_depth": 0, "maxpool_zero_nonmax": 0, "out_channels": 1},
    "upsample": {"reverse": 0},
    "reorg": {"reverse": 0},
    "reorg3d": {"reverse": 0},
    "scale_channels": {"scale_wh": 0},
    "yolo": {"embedding_layer": 999999, "contrastive": 0},
}


def training_only(section: str) -> set[str]:
    """The keys of ``section`` that have no effect here."""
    return TRAINING_ONLY["any"] | TRAINING_ONLY.get(section, set())
