# shellcheck shell=bash disable=SC2154 # what lib.sh defines
# A virtual machine whose kernel has software RDMA (rxe), on machines whose own kernel has not. Sourced, never run.
#
# A stock kernel of Debian under qemu's emulation, with an initramfs of two parts: installed packages, made once, and
# what this run brings. The guest's side is `vm-init`. Needs $scratch, which `use_scratch` makes.

vm_cache=$cache/rxe

# Whoever is asked to do something here that this machine cannot do exits so.
skipped=77

# What a machine needs that is to run one, as COMMAND:PACKAGE. `scripts/setup` installs them.
vm_packages=(
    qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio modprobe:kmod ip:iproute2 rdma:iproute2
    mke2fs:e2fsprogs ibv_devinfo:ibverbs-utils rping:rdmacm-utils ib_read_bw:perftest
    /etc/libibverbs.d/rxe.driver:ibverbs-providers /etc/rdma:rdma-core
)
vm_modules=(
    virtio_pci virtio_console virtio_blk crc32_generic crc32_pclmul crc32c_generic ext4 loop veth ib_uverbs rdma_ucm
    rdma_rxe
)
vm_programs=(ip tc rdma ibv_devinfo ibv_devices ib_read_bw rping)
# Loaded by name, so that ldd does not know of them.
vm_libraries=(libgcc_s.so.1 libibverbs.so.1 librdmacm.so.1)

vm_memory_mib=3072
vm_disk_mib=4096
# The guest is ready in 5 s on two idle cores.
vm_boot_seconds_max=120
# About one boot in ten dies early: the kernel patches itself while the emulated processors run.
vm_boots_max=3

# Root's programs are not on everyone's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

skip() {
    printf 'SKIPPED: %s\n' "$1" >&2
    exit "$skipped"
}

# The packages among $vm_packages that are not there.
vm_missing_packages() {
    local pair what
    for pair in "${vm_packages[@]}"; do
        what=${pair%:*}
        case $what in
            /*) [ -e "$what" ] ;;
            *) command -v "$what" >/dev/null ;;
        esac || printf '%s\n' "${pair##*:}"
    done
    # A busybox that needs libraries would not run as the guest's first program.
    ! command -v busybox >/dev/null || ! ldd "$(command -v busybox)" >/dev/null 2>&1 || printf 'busybox-static\n'
}

# vm_probe: skips with the reason where no machine can run.
vm_probe() {
    local missing
    [ "$(uname -m)" = x86_64 ] || skip "the machine is made for x86_64, this is $(uname -m)"
    mapfile -t missing < <(vm_missing_packages | sort -u)
    [ ${#missing[@]} = 0 ] || skip "not installed: ${missing[*]} (scripts/setup installs them)"
}

# ── kernel ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# The newest generic kernel of a series that apt knows. Cloud flavours have no rxe.
vm_newest_kernel() {
    apt-cache search --names-only "^linux-image-${1/./\\.}\.[0-9]+(-[0-9]+|\+deb[0-9]+)-amd64$" |
        cut -d ' ' -f 1 | sort -V | tail -n 1
}

# vm_use_kernel SERIES: $vm_kernel is a directory with `vmlinuz`, `modules` and `order`, and $vm_release its name.
vm_use_kernel() {
    local series=$1 deb package
    mkdir -p "$vm_cache"
    deb=$(find "$vm_cache" -maxdepth 1 -name "linux-image-$series.*.deb" | sort -V | tail -n 1)
    if [ -z "$deb" ]; then
        command -v apt-get >/dev/null || skip "there is no apt-get to fetch Debian's kernel $series with"
        package=$(vm_newest_kernel "$series")
        [ -n "$package" ] || skip "apt knows no linux-image-$series (is its list of packages there?)"
        say "fetching $package"
        mkdir "$scratch/kernel"
        (cd "$scratch/kernel" && apt-get -q download "$package") >&2 || skip "could not fetch $package"
        deb=$vm_cache/$package.deb
        cp "$scratch/kernel"/*.deb "$deb.$$" && mv "$deb.$$" "$deb"
        rm -r "$scratch/kernel"
    fi
    vm_release=$(basename "$deb" .deb)
    vm_release=${vm_release#linux-image-}
    vm_kernel=$vm_cache/kernel-$vm_release-$(printf '%s\n' "${vm_modules[@]}" | cksum | cut -d ' ' -f 1)
    [ -d "$vm_kernel" ] || vm_unpack_kernel "$deb"
}

# vm_unpack_kernel DEB: takes from the package what the guest needs: 2 % of it.
vm_unpack_kernel() {
    local all=$scratch/unpacked made=$scratch/made module path modules=()
    say "unpacking $(basename "$1")"
    mkdir -p "$made/modules"
    dpkg-deb -x "$1" "$all"
    [ -d "$all/lib/modules" ] || ln -sfn usr/lib "$all/lib"
    cp "$all/boot/vmlinuz-$vm_release" "$made/vmlinuz"
    depmod -b "$all" "$vm_release"
    mapfile -t modules < <(
        for module in "${vm_modules[@]}"; do
            modprobe -S "$vm_release" -d "$all" --show-depends "$module"
        done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++'
    )
    [ ${#modules[@]} -gt "${#vm_modules[@]}" ] || die "this kernel lacks modules that the machine needs: $vm_release"
    for path in "${modules[@]}"; do
        module=$(basename "$path")
        case $path in
            *.xz) xz -dc "$path" >"$made/modules/${module%.xz}" ;;
            *.zst) zstd -qdc "$path" >"$made/modules/${module%.zst}" ;;
            *) cp "$path" "$made/modules" ;;
        esac
        module=${module%.xz}
        printf '%s\n' "${module%.zst}" >>"$made/order"
    done
    rm -r "$all"
    mv -T "$made" "$vm_kernel" 2>/dev/null || [ -d "$vm_kernel" ] || die "cannot write $vm_kernel"
}

# ── image ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# vm_add ROOT TO FILE…: copies programs to ROOT/TO, and the libraries they need to where the host has them.
vm_add() {
    local to=$1/$2 file library
    mkdir -p "$to"
    for file in "${@:3}"; do
        # Nobody debugs in there, and debug information is most of a test binary.
        strip --strip-debug -o "$to/$(basename "$file")" "$file" 2>/dev/null || cp -L "$file" "$to"
        chmod 755 "$to/$(basename "$file")"
        { ldd "$file" 2>/dev/null || true; } | sed -n 's/.*[[:space:]]\(\/[^ ]*\) (0x.*/\1/p' |
            while read -r library; do vm_add_library "$1" "$library"; done
    done
}

# vm_add_library ROOT PATH
vm_add_library() {
    local at
    at=$1/$(realpath "$(dirname "$2")")
    [ -e "$at/$(basename "$2")" ] || { mkdir -p "$at" && cp -L "$2" "$at"; }
}

vm_pack() { (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --reproducible -o -H newc); }

# vm_use_base: $vm_base is the part of the initramfs that installed packages and the kernel make.
vm_use_base() {
    local key names=() pair
    for pair in "${vm_packages[@]}"; do names+=("${pair##*:}"); done
    key=$({ dpkg-query -W "${names[@]}" libc6 2>/dev/null || true; cat "$root/scripts/vm.sh" "$root/scripts/vm-init"; } |
        cksum | cut -d ' ' -f 1)
    vm_base=$vm_cache/base-$vm_release-$key.cpio
    [ ! -e "$vm_base" ] || return 0
    say "making the machine's image"
    local tree=$scratch/base name path program paths=()
    mkdir -p "$tree"/{dev,proc,sys,run,tmp,root,disk,job,etc/libibverbs.d,usr/bin,usr/sbin,usr/lib,usr/lib64}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
    cp "$(command -v busybox)" "$tree/usr/bin/busybox"
    for program in "${vm_programs[@]}"; do paths+=("$(realpath "$(command -v "$program")")"); done
    vm_add "$tree" usr/local/bin "${paths[@]}"
    for name in "${vm_libraries[@]}"; do
        path=$(ldconfig -p | sed -n "s/^[[:space:]]*$name (libc6,x86-64.*=> //p" | head -n 1)
        vm_add "$tree" "$(realpath "$(dirname "$path")")" "$path"
    done
    for path in "$(realpath "$(dirname "$path")")"/libibverbs/librxe-rdmav*.so; do
        vm_add "$tree" "$(dirname "$path")" "$path"
    done
    cp /etc/libibverbs.d/rxe.driver "$tree/etc/libibverbs.d"
    printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$tree/etc/group"
    printf '127.0.0.1 localhost\n' >"$tree/etc/hosts"
    cp -r "$vm_kernel/modules" "$vm_kernel/order" "$tree"
    install -m 755 "$root/scripts/vm-init" "$tree/init"
    vm_pack "$tree" >"$vm_base.$$"
    mv "$vm_base.$$" "$vm_base"
    rm -r "$tree"
}

# vm_use_disk: $vm_disk is an empty ext4, of which every run sees a copy.
vm_use_disk() {
    vm_disk=$vm_cache/disk-$vm_disk_mib.ext4
    [ ! -e "$vm_disk" ] || return 0
    truncate -s "${vm_disk_mib}M" "$vm_disk.$$"
    mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 "$vm_disk.$$" || die "cannot make $vm_disk"
    mv "$vm_disk.$$" "$vm_disk"
}

# vm_job COMMAND PATH…: the other part of the initramfs, $vm_overlay: a line of shell, and the programs it may name. A
# directory lies in /job. Variables whose names begin with MODELCAST_ or RUST_ go along.
vm_job() {
    local tree=$scratch/job name value path
    rm -rf "$tree"
    mkdir -p "$tree/job"
    for path in "${@:2}"; do
        if [ -d "$path" ]; then cp -RL "$path" "$tree/job"; else vm_add "$tree" usr/local/bin "$path"; fi
    done
    {
        printf 'export MODELCAST_RDMA_DEVICE=rxe0\n'
        while IFS='=' read -r -d '' name value; do
            [[ ! $name =~ ^(MODELCAST|RUST)_ ]] || printf "export %s='%s'\n" "$name" "${value//\'/\'\\\'\'}"
        done </proc/self/environ
        printf '%s\n' "$1"
    } >"$tree/job/run"
    vm_overlay=$scratch/initramfs
    # The kernel takes several archives in a row if each begins at a multiple of four; cpio writes whole blocks of 512.
    { cat "$vm_base" && vm_pack "$tree"; } >"$vm_overlay"
    rm -r "$tree"
}

# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# vm_run SECONDS_MAX: boots, and runs the job; its words come out of stdout and stderr, and its exit code is returned,
# 124 if it took too long. Fails if the machine did not boot, or died.
vm_run() {
    local boot
    for ((boot = 1; boot <= vm_boots_max; boot++)); do
        vm_start "$1"
        if vm_is_ready; then
            vm_finish
            return
        fi
        say "the machine did not boot (attempt $boot of $vm_boots_max)"
        vm_stop
    done
    vm_console
    die "the machine does not boot" "its console is above"
}

# vm_start SECONDS_MAX: $vm_pid. Emulation even where there is /dev/kvm: stock kernels hang under some hypervisors that
# are guests themselves.
vm_start() {
    local name ports=()
    rm -f "$scratch"/vm.*
    mkfifo "$scratch/vm.stdout" "$scratch/vm.stderr"
    : >"$scratch/vm.control"
    for name in stdout stderr control; do
        ports+=(-chardev "file,id=$name,path=$scratch/vm.$name" -device "virtserialport,chardev=$name,name=$name")
    done
    cat "$scratch/vm.stdout" &
    vm_readers=($!)
    cat "$scratch/vm.stderr" >&2 &
    vm_readers+=($!)
    TMPDIR=${TMPDIR:-/tmp} timeout --kill-after=5 "$(($1 + vm_boot_seconds_max))" qemu-system-x86_64 \
        -accel tcg,thread=multi -cpu max -smp 2 -m "$vm_memory_mib" -nodefaults -no-user-config -no-reboot -display none \
        -kernel "$vm_kernel/vmlinuz" -initrd "$vm_overlay" \
        -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off modelcast.seconds=$1" \
        -serial "file:$scratch/vm.console" -device virtio-serial-pci "${ports[@]}" \
        -drive "file=$vm_disk,format=raw,if=virtio,snapshot=on,cache=unsafe" </dev/null >"$scratch/vm.qemu" 2>&1 &
    vm_pid=$!
    children+=("$vm_pid")
}

# Whether the guest came as far as running its job.
vm_is_ready() {
    local deadline=$((SECONDS + vm_boot_seconds_max))
    while [ $SECONDS -lt $deadline ] && kill -0 "$vm_pid" 2>/dev/null; do
        ! grep -q '^ready' "$scratch/vm.control" || return 0
        sleep 0.1
    done
    grep -q '^ready' "$scratch/vm.control"
}

# Waits for the job's end and says how it ended.
vm_finish() {
    local code
    wait "$vm_pid" || true
    wait "${vm_readers[@]}" || true
    if grep -q ' \(BUG\|Oops\|WARNING\): ' "$scratch/vm.console"; then
        say "the machine's kernel complained:"
        vm_console
    fi
    code=$(sed -n 's/^exit //p' "$scratch/vm.control")
    [ -n "$code" ] || { vm_console; die "the machine died while it ran its job" "its console is above"; }
    return "$code"
}

vm_stop() {
    kill "$vm_pid" 2>/dev/null || true
    wait "$vm_pid" 2>/dev/null || true
    # Readers of a machine that never opened its end wait for it.
    kill "${vm_readers[@]}" 2>/dev/null || true
    wait "${vm_readers[@]}" 2>/dev/null || true
}

vm_console() { tail -n 40 "$scratch/vm.console" "$scratch/vm.qemu" >&2 || true; }
