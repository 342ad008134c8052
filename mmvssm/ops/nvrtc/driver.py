"""CUDA's driver library through ctypes, as far as loading and launching kernels needs it."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p

#: Attributes to ask cuDeviceGetAttribute for; those that a driver does not know stay zero.
NUM_ATTRIBUTES = 128
CLOCK_KHZ, MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR, SHARED_LIMIT = 13, 16, 75, 76, 97
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
#: Bytes of shared memory that a kernel gets without opting in.
_PLAIN_SHARED = 48 * 1024


class DriverError(RuntimeError):
    """The driver is missing, or a call of it failed."""


class Driver:
    """The driver library.

    Args:
        file: Name or path of the library.

    Raises:
        DriverError: If it does not load.
    """

    def __init__(self, file: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(file)
        except OSError as error:
            raise DriverError(f"the NVIDIA driver does not load ({error})") from None
        self._call("cuInit", c_uint(0))

    def device(self, index: int) -> int:
        """Return the driver's handle of the device ``index``."""
        handle = c_int()
        self._call("cuDeviceGet", byref(handle), index)
        return handle.value

    def attributes(self, device: int) -> list[int]:
        """Return all attributes of a device, indexed by their number."""
        values = []
        for attribute in range(NUM_ATTRIBUTES):
            value = c_int(0)
            self._library.cuDeviceGetAttribute(byref(value), attribute, device)
            values.append(value.value)
        return values

    def ensure_context(self, device: int) -> None:
        """Make the device's primary context, which torch uses, current if no context is."""
        context = c_void_p()
        self._call("cuCtxGetCurrent", byref(context))
        if not context:
            self._call("cuDevicePrimaryCtxRetain", byref(context), device)
            self._call("cuCtxSetCurrent", context)

    def load(self, code: bytes, name: str) -> c_void_p:
        """Load machine code or PTX into the current context; return its kernel ``name``."""
        module, function = c_void_p(), c_void_p()
        self._call("cuModuleLoadData", byref(module), c_char_p(code))
        self._call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def allow_shared_memory(self, function: c_void_p, shared_bytes: int) -> None:
        """Allow launches of a kernel with this much dynamic shared memory."""
        if shared_bytes > _PLAIN_SHARED:
            self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared_bytes)

    def launch(
        self,
        function: c_void_p,
        blocks: int,
        threads: int,
        shared_bytes: int,
        stream: int,
        params: bytearray,
    ) -> None:
        """Launch a kernel that takes one struct, which is copied before this returns."""
        struct = (ctypes.c_char * len(params)).from_buffer(params)
        pointers = (c_void_p * 1)(ctypes.addressof(struct))
        sizes = (c_uint(size) for size in (blocks, 1, 1, threads, 1, 1, shared_bytes))
        self._call("cuLaunchKernel", function, *sizes, c_void_p(stream), pointers, None)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set each of ``size`` bytes at ``address`` to ``value``."""
        arguments = (ctypes.c_uint64(address), ctypes.c_ubyte(value), c_size_t(size))
        self._call("cuMemsetD8Async", *arguments, c_void_p(stream))

    def _call(self, function: str, *arguments) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            words = c_char_p()
            self._library.cuGetErrorString(status, byref(words))
            raise DriverError(f"{function}: {(words.value or b'').decode()} (error {status})")
