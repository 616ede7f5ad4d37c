"""Where else a run is logged (`log=`): TensorBoard, Weights & Biases and MLflow, from what the run has measured."""
