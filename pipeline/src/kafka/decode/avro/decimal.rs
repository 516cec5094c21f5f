//! Decimals as text, with all digits; a float would round them.

use std::borrow::Cow;

use crate::records::Value;

/// The text of a number in two's complement, highest byte first, with `scale` digits after the point.
pub(super) fn decimal(bytes: &[u8], scale: usize) -> Value<'static> {
    /// As many digits as an `i128` has, or an exponent of an `f64`.
    const SCALE_MAX: usize = 400;
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let sign = if negative { 0xff } else { 0 };
    let extra = bytes.len().saturating_sub(16);
    let (extension, digits) = bytes.split_at(extra);
    let kept = digits.first().is_none_or(|byte| (byte & 0x80 != 0) == negative);
    if scale > SCALE_MAX || !kept || extension.iter().any(|&byte| byte != sign) {
        return Value::Other("a decimal of more than 128 bits");
    }
    let mut number = [sign; 16];
    number[16 - digits.len()..].copy_from_slice(digits);
    let number = i128::from_be_bytes(number);
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let minus = if negative { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    Value::Text(Cow::Owned(format!("{minus}{whole}{point}{fraction}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_out() {
        let text = |bytes: &[u8], scale| match decimal(bytes, scale) {
            Value::Text(text) => text.into_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(text(&[0x04, 0xd2], 2), "12.34");
        assert_eq!(text(&[0xfb, 0x2e], 2), "-12.34");
        assert_eq!(text(&[5], 3), "0.005");
        assert_eq!(text(&[0xff], 0), "-1");
        assert_eq!(text(&[], 0), "0");
        assert_eq!(text(&[0xff; 30], 1), "-0.1");
        assert_eq!(text(&[0x7f; 16], 0), i128::from_be_bytes([0x7f; 16]).to_string());
        assert!(text(&[0x7f; 17], 0).contains("128"));
        let mut high = [0; 17];
        high[1] = 0x80;
        assert!(text(&high, 0).contains("128"));
    }
}
