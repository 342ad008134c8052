_base_ = "./mambavision-base_8xb128_in1k.py"
# The network of the weights that were pretrained on ImageNet-21k. Their fine-tuning is not
# published: this is the recipe of the weights trained on ImageNet-1k alone.
