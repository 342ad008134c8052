# Images and convolution weights in channels-last memory format (B, H, W, C), which tensor cores
# use. A default hook, because a list of custom hooks would replace the config's own.
default_hooks = dict(channels_last=dict(type="mmvssm.ChannelsLastHook"))
