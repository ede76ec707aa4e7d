#!/bin/sh
# What udhcpc calls with each lease.
[ -n "$interface" ] || exit 1
case "$1" in
deconfig)
    ip -4 address flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    if [ "$1" = bound ]; then
        ip address add "$ip/${mask:-24}" dev "$interface"
    fi
    if [ -n "$staticroutes" ]; then
        # RFC 3442: with these, the router option is not looked at.
        set -- $staticroutes
        while [ -n "$2" ]; do
            ip route replace "$1" via "$2" dev "$interface" 2>/dev/null ||
                ip route replace "$1" dev "$interface"
            shift 2
        done
    else
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
            break
        done
    fi
    if [ -n "$dns" ]; then
        {
            [ -n "$domain" ] && echo "search $domain"
            for server in $dns; do echo "nameserver $server"; done
        } >/etc/resolv.conf
    fi
    ;;
esac
exit 0
