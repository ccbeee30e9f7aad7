#!/usr/bin/env bash
# build.sh [FOLDER]: a Kubernetes control plane for the tests, in FOLDER/bin
# (default: ${XDG_CACHE_HOME:-~/.cache}/shipctl-kube/bin): etcd, kube-apiserver, kube-controller-manager and kubectl, 1.20.2.
#
# Everything comes from Debian 12: etcd and kubectl as packages, the two servers built from the source package
# `kubernetes`, which carries all that it needs, by Debian's Go. Nothing is installed, and apt's own settings stay
# as they are: no root needed. About 4 minutes on two idle cores, 2 GB while it builds, 175 MB after.
# Where everything is there already, nothing happens; what was interrupted goes on where it stopped.
set -euo pipefail

root=$(realpath -m "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/shipctl-kube}")
work=$root/build
servers=(kube-apiserver kube-controller-manager)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
version=v1.20.2

say() { printf '%(%T)T %s\n' -1 "$*" >&2; }
refuse() { echo "cannot build the control plane: $*" >&2; exit 1; }

complete() {
    local program
    for program in etcd kubectl "${servers[@]}"; do
        [[ -x $root/bin/$program ]] || return 1
    done
}

check_machine() {
    [[ $(uname -sm) == "Linux x86_64" ]] || refuse "it is built of Debian's packages for Linux on x86-64; this is $(uname -sm)"
    local command
    for command in apt-get dpkg-deb; do
        command -v $command >/dev/null || refuse "there is no $command; it is built of Debian's packages"
    done
    command -v dpkg-source >/dev/null || refuse "there is no dpkg-source: make system-deps"
    [[ -e $keyring ]] || refuse "Debian's keys are not at $keyring: install debian-archive-keyring"
}

# -- what Debian has ---------------------------------------------------------------------------------------------

# An apt with lists, cache and sources of its own: Debian 12 with source packages, from the mirror that this machine uses.
set_up_apt() {
    mkdir -p "$work"/apt/{etc/sources.list.d,state/lists/partial,cache/archives/partial}
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 2>/dev/null | head -n 1 || true)
    cat >"$work/apt/etc/sources.list.d/debian.sources" <<END
Types: deb deb-src
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: bookworm
Components: main
Signed-By: $keyring
END
}

own_apt() {
    apt-get -q \
        -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/apt/etc/sources.list.d" \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$work/apt/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$work/apt/cache" \
        -o APT::Sandbox::User="$(id -un)" -o APT::Architecture=amd64 -o Acquire::Retries=3 -o Debug::NoLocking=1 "$@" >&2
}

download() {
    [[ ! -e $work/downloaded ]] || return 0
    say "downloading from Debian"
    set_up_apt
    mkdir -p "$work"/{packages,source}
    own_apt update
    (cd "$work/packages" && own_apt download etcd-server kubernetes-client golang-1.19-go golang-1.19-src \
        golang-github-modern-go-reflect2-dev)
    (cd "$work/source" && own_apt source --download-only kubernetes)
    touch "$work/downloaded"
}

unpack() {
    [[ ! -e $work/unpacked ]] || return 0
    say "unpacking"
    rm -rf "$work"/{debian,kubernetes}
    local package
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/debian"; done
    # apt has checked it against Debian's signed list; who uploaded it need not be known here
    dpkg-source --no-check -x "$work"/source/kubernetes_*.dsc "$work/kubernetes" >/dev/null
    mkdir -p "$root/bin"
    install "$work/debian/usr/bin/etcd" "$work/debian/usr/bin/kubectl" "$root/bin"
    adapt
    touch "$work/unpacked"
}

# What this old source needs, to be built by a newer Go.
adapt() {
    local vendor=$work/kubernetes/vendor
    # reflect2 1.0.1 crashes with Go 1.18 and newer; Debian's 1.0.2 does not
    rm "$vendor"/github.com/modern-go/reflect2/*.{go,s}
    cp "$work"/debian/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendor/github.com/modern-go/reflect2/"
    # with Go 1.19 and newer the validator takes every zero value (`weight: 0`) of a custom resource for null
    sed -i 's/ || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))//' \
        "$vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go" "$vendor/github.com/go-openapi/validate/type.go"
}

# -- build -------------------------------------------------------------------------------------------------------

set_up_go() {
    export GOROOT=$work/debian/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache
    export GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
    export PATH=$GOROOT/bin:$PATH
    mkdir -p "$GOPATH/src/k8s.io"
    ln -sfn "$work/kubernetes" "$GOPATH/src/k8s.io/kubernetes"
    cd "$GOPATH/src/k8s.io/kubernetes"
}

# Debian's source leaves out the generated description of all types, which server-side apply reads.
generate_openapi() {
    local generated=pkg/generated/openapi/zz_generated.openapi.go packages
    [[ ! -e $work/generated ]] || return 0
    say "generating the description of the API"
    go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    packages=$(find -L pkg cmd vendor/k8s.io -path '*/testdata' -prune -o -name '*.go' -print |
        grep -v -E '^vendor/k8s.io/(code-generator|sample-apiserver)/|zz_generated' |
        xargs grep -l '+k8s:openapi-gen=' | xargs -n 1 dirname | sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -s -d ,)
    "$work/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
        -h hack/boilerplate/boilerplate.generatego.txt --report-filename /dev/null --output-base "$GOPATH/src"
    # later releases fill in the protocol of a Service's port in server-side apply; 1.20 refuses a port without one
    sed -i '/^func schema_k8sio_api_core_v1_ServicePort(/,/^}/ s/\(Default is TCP.",\)$/\1 Default: "TCP",/' $generated
    touch "$work/generated"
}

build() {
    local flags="-s -w" package program
    for package in component-base/version client-go/pkg/version; do
        package=k8s.io/kubernetes/vendor/k8s.io/$package
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean"
    done
    for program in "${servers[@]}"; do
        [[ ! -x $root/bin/$program ]] || continue
        say "building $program"
        go build -trimpath -tags "providerless dockerless" -ldflags "$flags" -o "$work/$program" "./cmd/$program"
        mv "$work/$program" "$root/bin/$program"
    done
}

clean_up() {
    cd /
    chmod -R u+w "$work"  # Go keeps some folders read-only
    rm -rf "$work"
}

if ! complete; then
    check_machine
    mkdir -p "$root"
    exec {lock}>"$root/lock"
    flock "$lock"  # a second build waits, and finds it done
    if ! complete; then
        mkdir -p "$work"
        download
        unpack
        set_up_go
        generate_openapi
        build
        clean_up
    fi
fi
echo "$root/bin"
