//! Envoy's response flags (`StreamInfo::CoreResponseFlag`), by their letters.

/// From the lowest bit on.
const FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR",
    "UDO",
];

/// `NR`
pub(super) const NO_ROUTE: u64 = 1 << 8;

/// As Envoy writes them, with commas between; `-` for none.
pub(super) fn letters(bits: u64) -> String {
    let mut text = String::new();
    for (at, letters) in FLAGS.iter().enumerate() {
        if bits & (1 << at) != 0 {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(letters);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    text
}
