# SPDX-License-Identifier: Apache-2.0
"""Debian's tpm2-tools for the guests: one program, and all that it is linked with.

Linked, not used: most of it is what curl may fetch a certificate by.
"""

from __future__ import annotations

from typing import Final

from . import pins
from .pins import Pin


def debian(package: str, version: str, sha256: str) -> Pin:
    """A package of the guests' architecture; its file is named as Debian always does."""
    return Pin(
        package=package,
        suite=pins.STABLE,
        is_source=False,
        version=version,
        file=f"{package}_{version.replace(':', '%3a')}_ppc64el.deb",
        sha256=sha256,
    )


PROGRAM: Final = debian(
    "tpm2-tools", "5.7-1", "9978f0482d2f88713c3b59aa26efd907727f19522a93639bcc26c963717a237e"
)

COMMANDS: Final = (
    *("tpm2_createprimary", "tpm2_evictcontrol", "tpm2_flushcontext", "tpm2_getcap"),
    *("tpm2_getrandom", "tpm2_pcrextend", "tpm2_pcrread", "tpm2_readpublic", "tpm2_sign"),
)
"""Names that the program is called by."""

LIBRARIES: Final[dict[Pin, tuple[str, ...]]] = {
    pins.LIBC: ("libresolv.so.2",),
    debian(
        "libbrotli1",
        "1.1.0-2+b7",
        "bdbb6171de2ff9d22d1a5b98e06a4979506f8e5ac1f4dfafabd5c3b952e9c7ab",
    ): (
        "libbrotlicommon.so.1",
        "libbrotlidec.so.1",
    ),
    debian(
        "libcom-err2",
        "1.47.2-3+b12",
        "cb0b42d48131a46222cc3d63624d14dc91bd48fe2616a4f88926e6be6d8d632d",
    ): ("libcom_err.so.2",),
    debian(
        "libcurl3t64-gnutls",
        "8.14.1-2+deb13u5",
        "bc52343c79671efc82ade0a2c2be17983d5148e04bccda688218b549d6395187",
    ): ("libcurl-gnutls.so.4",),
    debian(
        "libffi8", "3.4.8-2", "226c68c3975d1b0bacaaa55fb98b7c44000d68ee88966ed5664ddc5a4091b86d"
    ): ("libffi.so.8",),
    debian(
        "libgmp10",
        "2:6.3.0+dfsg-3",
        "ed258e13f7bd7c6d407651e4fc419dfe2895cb6876a0fb1237e71f17ef5be555",
    ): ("libgmp.so.10",),
    debian(
        "libgnutls30t64",
        "3.8.9-3+deb13u4",
        "768f2929a26daa8662f97c7f7d44ba0dda28a241dba37afeac563baca3b97d6b",
    ): ("libgnutls.so.30",),
    debian(
        "libgssapi-krb5-2",
        "1.21.3-5+deb13u1",
        "a299801e9c0ae76ebfd0f6352ecf07a11be6ac58b3fecf51867cbfe08859e0b7",
    ): ("libgssapi_krb5.so.2",),
    debian(
        "libhogweed6t64",
        "3.10.1-1",
        "6970610f104eb47e782166ac4d02535655580be5a2673edb278756436c565a6e",
    ): ("libhogweed.so.6",),
    debian(
        "libidn2-0", "2.3.8-2", "07916ab3f37fada9d5e86f1bc43521747edb64a823078b1e6315d093a2a2e704"
    ): ("libidn2.so.0",),
    debian(
        "libk5crypto3",
        "1.21.3-5+deb13u1",
        "fabbe83605af886f3bc65677200b9f9940f30166be3076a595526887d4cf9bda",
    ): ("libk5crypto.so.3",),
    debian(
        "libkrb5-3",
        "1.21.3-5+deb13u1",
        "6f71c5eff7ccc89889f7633e13eba37c01819c89fb296c937622f533490a9e1a",
    ): ("libkrb5.so.3",),
    debian(
        "libkrb5support0",
        "1.21.3-5+deb13u1",
        "069be0fcf90e92faafff1cad51cabcbc577547d09c4352806b743fd019c18ad7",
    ): ("libkrb5support.so.0",),
    debian(
        "libldap2",
        "2.6.10+dfsg-1",
        "def7f916b6c7dca7e4c30f491f8690deb4c74c1863a172ef30e2ab3a1a7011ed",
    ): (
        "liblber.so.2",
        "libldap.so.2",
    ),
    debian(
        "libnettle8t64",
        "3.10.1-1",
        "dfa36ec357a2ece27ab6b4660c30f348b13e2e8d9eaf482b081f60be463457c3",
    ): ("libnettle.so.8",),
    debian(
        "libnghttp2-14",
        "1.64.0-1.1+deb13u1",
        "3ef80bc9aa3061b86a535559eb3f96667483590e0ab1f3d300c27abf2015fd13",
    ): ("libnghttp2.so.14",),
    debian(
        "libnghttp3-9",
        "1.8.0-1",
        "5dbf11cdee8226a68d2614023abb11d61c3a77ea5e1ce8e75e05487841b5d470",
    ): ("libnghttp3.so.9",),
    debian(
        "libngtcp2-16",
        "1.11.0-1+deb13u1",
        "f14bcd6961ce8bb52e32847fb715ebbdec24c816e9973a076c70692d3cc58147",
    ): ("libngtcp2.so.16",),
    debian(
        "libngtcp2-crypto-gnutls8",
        "1.11.0-1+deb13u1",
        "7a17ce21a7e2e1baeac593ea16ae06662a23862ab06e8153ca01bb7b9fbcabd4",
    ): ("libngtcp2_crypto_gnutls.so.8",),
    debian(
        "libp11-kit0",
        "0.25.5-3",
        "19afc6277a0ddeb9509c5b0c2aa43d59c3a19de1464a6fe5c63bca6272786eed",
    ): ("libp11-kit.so.0",),
    debian(
        "libpsl5t64",
        "0.21.2-1.1+b1",
        "e979c27ac519fa83da793183781ee6a73b3baf6b59ceb51e2617878c9647bfec",
    ): ("libpsl.so.5",),
    debian(
        "librtmp1",
        "2.4+20151223.gitfa8646d.1-2+b5",
        "f4f32da85c38dede58604142672014b89639ac67251b37c983c0bf777bdd9d63",
    ): ("librtmp.so.1",),
    debian(
        "libsasl2-2",
        "2.1.28+dfsg1-9",
        "9f2dfbc78bac839cb7a981c0bce5dac91039d3e1d2db107b2d16972c9952e83e",
    ): ("libsasl2.so.2",),
    debian(
        "libssh2-1t64",
        "1.11.1-1+deb13u2",
        "362dc93a78a4f0e66ae03f6d1494d5f2ccf4cd37cd3015fa6fd01f3a0e4697f0",
    ): ("libssh2.so.1",),
    debian(
        "libssl3t64",
        "3.5.7-1~deb13u2",
        "71528fcfd38807b513d6afa0790affaa67e40cb48dce46a9faab52008016b56e",
    ): (
        "libcrypto.so.3",
        "libssl.so.3",
    ),
    debian(
        "libtasn1-6",
        "4.20.0-2+deb13u1",
        "810bf5c0c064a53072ce1bc6025711f44cfe3d4ef86d1cd7cac85afdc01a654d",
    ): ("libtasn1.so.6",),
    debian(
        "libtss2-esys-3.0.2-0t64",
        "4.1.3-1.2",
        "e9ed14ef0826f223f8a92c552f0c156e47053d6398950082f34248ca62068c57",
    ): ("libtss2-esys.so.0",),
    debian(
        "libtss2-mu-4.0.1-0t64",
        "4.1.3-1.2",
        "00dfa7f54352e33f0f212408531526cc99bba73fce1ef71ebef5978eeec37f1d",
    ): ("libtss2-mu.so.0",),
    debian(
        "libtss2-rc0t64",
        "4.1.3-1.2",
        "8ffdad27d33c6baebd4c3170b74ba18d8e7556d83c295cbcd179c68cc4294661",
    ): ("libtss2-rc.so.0",),
    debian(
        "libtss2-sys1t64",
        "4.1.3-1.2",
        "142eb48e5d2a21ae74f6584b6703364e6f044a33551c5014f529a51703b9c7b8",
    ): ("libtss2-sys.so.1",),
    debian(
        "libtss2-tcti-device0t64",
        "4.1.3-1.2",
        "5e8d0fae0a5ab37b3d2243ad0c72bd4a6bf7b9ea573d69281f33c555968546af",
    ): ("libtss2-tcti-device.so.0",),
    debian(
        "libtss2-tctildr0t64",
        "4.1.3-1.2",
        "ef885f736bb915c56f4e82aae07036c10fca19b3bffeb452ce5d1c06ea5e61ef",
    ): ("libtss2-tctildr.so.0",),
    debian(
        "libunistring5", "1.3-2", "d70826e69058418f9bcbcf76907b816e65086e639ad72c41613017b1f4adac98"
    ): ("libunistring.so.5",),
    debian(
        "libzstd1",
        "1.5.7+dfsg-1",
        "1cdefa11a7d31bb36b610d4e44551870a44dfc6cac8359ebe9f9061a4f830773",
    ): ("libzstd.so.1",),
    debian(
        "zlib1g",
        "1:1.3.dfsg+really1.3.1-1+b1",
        "f526e830310db11983cf51cfde95a74bc449a7bdc44b6ce68827d78802f1b4ae",
    ): ("libz.so.1",),
}
"""The libraries of each package that are wanted. The tools' archive has the C library."""
