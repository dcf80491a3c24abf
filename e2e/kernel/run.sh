#!/bin/sh
# Runs e2e's tests on ESP in the kernel: in a guest machine with Debian's
# kernel, since the one below need not have ESP. The guest is software
# emulation, has no network, no disk, and ends with the tests. Its root is
# built here from this machine's own programs.
#
#   e2e/kernel/run.sh [-test.run PATTERN ...]     flags of a Go test binary
#
# Exits with the tests' status. What .ci/deps kernel installs must be there.
set -eu

cd "$(dirname "$0")/../.."
images=$PWD/build/kernel
work=$(mktemp -d)
machine=
trap '[ -z "$machine" ] || kill "$machine" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
root=$work/root

# Far beyond the 8 minutes that it takes, emulated, on two busy cores.
limit=20m
memory=2G

# What the lab and Bodkin run.
programs="ip ss nft conntrack miniupnpd ping mount umount swanctl kmod /usr/lib/ipsec/charon /usr/lib/ipsec/_updown"

# Kernel modules: ESP and its crypto, NAT, and the lab's own links.
modules="kernel/net/ipv4 kernel/net/ipv6 kernel/net/xfrm kernel/net/key kernel/net/netfilter
kernel/net/bridge kernel/net/802 kernel/net/llc kernel/net/packet kernel/net/core
kernel/drivers/net/tun.ko kernel/drivers/net/veth.ko
kernel/crypto kernel/arch/x86/crypto kernel/lib"

fail() {
	echo "e2e-kernel: $*" >&2
	exit 1
}

# unpack_kernel leaves the newest kernel of Debian's in $image: unpacked, not
# installed, for this machine shall not boot it.
unpack_kernel() {
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
	[ -n "$package" ] || fail "no package linux-image-cloud-amd64 is known: run apt-get update"
	version=${package#linux-image-}
	image=$images/$version
	[ ! -f "$image/complete" ] || return 0
	rm -rf "$image"
	mkdir -p "$image/download"
	(cd "$image/download" && apt-get -qq -o APT::Sandbox::User=root download "$package")
	dpkg-deb -x "$image"/download/*.deb "$image"
	rm -r "$image/download"
	touch "$image/complete"
}

# copy puts files and the shared libraries they need into the guest's root.
copy() {
	for file; do
		echo "$file"
		ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true
	done | sort -u | while read -r path; do
		mkdir -p "$root$(dirname "$path")"
		cp -L "$path" "$root$path"
	done
}

build_root() {
	rm -rf "$root"
	mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/etc" \
		"$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/root" "$root/var"
	for dir in bin sbin lib lib64; do
		ln -s "usr/$dir" "$root/$dir"
	done
	ln -s /run "$root/var/run"

	# shellcheck disable=SC2046,SC2086 # one word per program
	copy $(for p in $programs; do command -v $p; done) /usr/lib/ipsec/plugins/*.so \
		$(ldconfig -p | awk '/libgcc_s.so.1/ { print $NF; exit }') # opened when a thread is cancelled
	cp "$(command -v busybox)" "$root/usr/bin/busybox"
	ln -s busybox "$root/usr/bin/sh"
	ln -s ../bin/kmod "$root/usr/sbin/modprobe" # the kernel calls it to load its crypto
	echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
	echo root:x:0: >"$root/etc/group"
	cp /etc/protocols /etc/services "$root/etc/"
	cp e2e/kernel/init "$root/init"

	for m in $modules; do
		mkdir -p "$root/lib/modules/$version/$(dirname "$m")"
		cp -r "$image/lib/modules/$version/$m" "$root/lib/modules/$version/$m"
	done
	cp "$image/lib/modules/$version"/modules.builtin* "$image/lib/modules/$version/modules.order" "$root/lib/modules/$version/"
	depmod -b "$root" "$version"

	# Without cgo they need no libraries of the guest.
	CGO_ENABLED=0 go build -buildvcs=false -o "$root/bodkin" ./cmd/bodkin
	CGO_ENABLED=0 go test -c -tags kernelesp -o "$root/e2e.test" ./e2e
}

# boot runs the guest; false if it ended, or was ended, without a result. The
# second serial port is how the guest tells the tests' exit status.
boot() {
	rm -f "$work/status"
	timeout $limit qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m $memory \
		-nodefaults -no-user-config -display none -no-reboot -nic none \
		-kernel "$image/boot/vmlinuz-$version" -initrd "$work/initramfs.gz" \
		-append "console=ttyS0 quiet panic=-1" \
		-serial stdio -serial "file:$work/status" </dev/null &
	machine=$! # in the background, so that a signal to this shell ends it
	wait $machine || echo "e2e-kernel: the guest ended with status $? (124: it took longer than $limit)" >&2
	machine=
	[ -s "$work/status" ]
}

unpack_kernel
build_root
printf '%s\n' "$@" >"$root/args"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$work/initramfs.gz"
echo "e2e-kernel: booting Linux $version${*:+, tests: $*}"
# An emulated kernel on a busy machine can lock up. That is no result, and is
# said; a test that fails is one, and is final.
boot || {
	echo "e2e-kernel: NO RESULT, booting a second time" >&2
	boot
} || fail "no result twice"
exit "$(tr -d '\r\n' <"$work/status")"
