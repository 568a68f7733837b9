//! Chance that can be repeated.

/// xorshift64*: what a seed means is the same wherever it is thrown.
#[derive(Clone, Debug)]
pub struct SeededRng(u64);

impl SeededRng {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Dice of a seed and of one of those who share it.
    pub fn stream(seed: u64, index: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index + 1) << 40 | 1)
    }

    /// A number below `sides`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}
