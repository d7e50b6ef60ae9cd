"""What vLLM's workers are asked about the model they have loaded."""

from __future__ import annotations

from typing import Any


class SoftCaps:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def soft_caps(self) -> dict[str, Any]:
        """Attention implementation -> soft-cap of its logits, and the soft-caps of the final logits; 0 is none."""
        runner: Any = self.model_runner  # pyright: ignore[reportAttributeAccessIssue]
        modules = [module for _, module in runner.model.named_modules()]
        layers = [module.impl for module in modules if hasattr(module, "impl") and hasattr(module, "attn_backend")]
        final = [module for module in modules if type(module).__name__ == "LogitsProcessor"]
        return {
            "attention": {
                f"{type(impl).__name__} {number}": getattr(impl, "logits_soft_cap", 0) or 0
                for number, impl in enumerate(layers)
            },
            "logits": [module.soft_cap or 0 for module in final],
        }
