# Curves for TensorBoard, besides those that the log keeps: tensorboard --logdir WORK_DIR
visualizer = dict(
    vis_backends=[
        dict(type="mmengine.LocalVisBackend"),
        dict(type="mmengine.TensorboardVisBackend"),
    ]
)
