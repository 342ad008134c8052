_base_ = "./mambavision-base_8xb128_in1k.py"
# The network of the weights that were pretrained on ImageNet-21k. How they were fine-tuned is not
# published: this is the recipe of those that were not.
