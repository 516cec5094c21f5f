//! `device` and `precision`: where the trainer computes, and with which number format.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Device of the trainer, written `cpu` or `cuda:N`. Only the trainer can tell whether it exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSetting {
    /// The CPU, all cores.
    #[default]
    Cpu,
    /// The NVIDIA GPU with this index from 0, in the order of `nvidia-smi -L` if `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    Cuda(usize),
}

impl TryFrom<String> for DeviceSetting {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        let digits = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(|| {
            format!("`{text}` is not a device; write cpu, or cuda:0 (cuda:1, …) for an NVIDIA GPU")
        })
    }
}

impl fmt::Display for DeviceSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl From<DeviceSetting> for String {
    fn from(device: DeviceSetting) -> Self {
        device.to_string()
    }
}

/// Number format on a GPU of matrix products and self-attention: of their operands, and of the values kept between products (norm
/// outputs, queries, keys and values, attention outputs, feed-forward activations, logit gradients). Always 32-bit floats:
/// parameters and their gradients, moments, the residual stream, logits, softmax, loss, all sums, and the attention of single
/// rows (CGSA) except its projections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with 8 exponent bits, like 32-bit ones; GPUs only.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_and_print() {
        for (text, device) in [
            ("cpu", DeviceSetting::Cpu),
            ("cuda:0", DeviceSetting::Cuda(0)),
            ("cuda:12", DeviceSetting::Cuda(12)),
        ] {
            assert_eq!(DeviceSetting::try_from(text.to_owned()), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        for wrong in ["", "gpu", "CPU", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:0 ", "metal:0"]
        {
            assert!(DeviceSetting::try_from(wrong.to_owned()).unwrap_err().contains("cuda:0"), "{wrong}");
        }
    }
}
