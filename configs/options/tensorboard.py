# Curves for TensorBoard, in addition to those of the log: tensorboard --logdir WORK_DIR
visualizer = dict(
    vis_backends=[
        dict(type="mmengine.LocalVisBackend"),
        dict(type="mmengine.TensorboardVisBackend"),
    ]
)
