# Images and convolution weights in the memory order (B, H, W, C), in which tensor cores work.
# A default hook, since a list of custom hooks would replace the config's own.
default_hooks = dict(channels_last=dict(type="mmvssm.ChannelsLastHook"))
