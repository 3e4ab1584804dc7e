"""From raw outputs to detections and mAP: loss, metrics, runtimes, checkpoints."""
