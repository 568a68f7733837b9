//! What TC programs return.

/// `TCX_NEXT`, and TC_ACT_UNSPEC of older hooks: it is not ours.
pub(super) const TCX_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(super) const TC_ACT_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(super) const TC_ACT_REDIRECT: i32 = 7;
