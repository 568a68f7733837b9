//! Return values of TC programs.

/// `TCX_NEXT`, equal to `TC_ACT_UNSPEC` of `clsact`: continue with the next program or filter.
pub(super) const TCX_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(super) const TC_ACT_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(super) const TC_ACT_REDIRECT: i32 = 7;
