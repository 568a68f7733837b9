//! The kernel programs of the packet engine.
//!
//! `sni_in` sees what arrives. A flow that is armed still belongs to two sockets; when its back end
//! answers, they are looked at, and if they hold nothing any more, packets of the flow are translated
//! from one leg to the other from then on. `sni_out` sees what this host sends, and gags those two
//! sockets. `sni_xdp` does what `sni_in` does with the packets of a flow that is taken over, in the driver
//! (XDP). `sni_ctl` lets user space decide that a flow stays with its sockets.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

#[path = "../packet/mod.rs"]
mod packet;

use packet::{tc, xdp};

#[classifier]
fn sni_in(ctx: TcContext) -> i32 {
    tc::ingress(&ctx)
}

#[classifier]
fn sni_out(ctx: TcContext) -> i32 {
    tc::egress(&ctx)
}

#[classifier]
fn sni_ctl(ctx: TcContext) -> i32 {
    tc::control(&ctx)
}

#[xdp(frags)]
fn sni_xdp(ctx: XdpContext) -> u32 {
    xdp::receive(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
