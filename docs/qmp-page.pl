#!/usr/bin/perl
# SPDX-License-Identifier: LGPL-2.1-or-later
# The manual page chaind-qmp(7): PAGE, with REFERENCE (docs/qmp.md), turned into POD, for its line
# "=for reference". Knows the Markdown that `chaind --qmp-reference` writes, and dies of any other.
# usage: qmp-page.pl PAGE REFERENCE >POD
use strict;
use warnings;
use utf8;
use open qw(:std :encoding(UTF-8));

die "usage: qmp-page.pl PAGE REFERENCE\n" if @ARGV != 2;
my ($page, $reference) = @ARGV;

sub text {
    my ($line) = @_;
    $line =~ s/</E<lt>/g;
    $line =~ s/(?<!E<lt)>/E<gt>/g;
    $line =~ s/\[(\w[\w-]*)\]\(#[\w-]+\)/I<$1>/g;
    $line =~ s/\[([\w.-]+)\]\(\1\)/F<docs\/$1>/g;
    $line =~ s/`([^`]+)`/B<$1>/g;
    die "$reference:$.: what is this? $line\n" if $line =~ /\]\(|`|^#/;
    return $line;
}

sub print_reference {
    open my $in, '<', $reference or die "$reference: $!\n";
    my $is_list = 0;
    while (my $line = <$in>) {
        chomp $line;
        my $is_item = $line =~ /^- /;
        if ($is_list && !$is_item && $line ne '') {
            print "=back\n\n";
            $is_list = 0;
        }
        next if $line =~ /^# / || $line eq '';
        if ($line =~ /^## (.*)/) {
            print "=head1 ", uc text($1), "\n\n";
        } elsif ($line =~ /^### (.*)/) {
            print "=head2 ", text($1), "\n\n";
        } elsif ($is_item) {
            print "=over\n\n" if !$is_list;
            $is_list = 1;
            my ($name, $rest) = $line =~ /^- (`[^`]+`)(?:: (.*))?$/ or die "$reference:$.: no item: $line\n";
            print "=item ", text($name), "\n\n";
            print text($rest), "\n\n" if defined $rest;
        } else {
            print text($line), "\n\n";
        }
    }
    print "=back\n\n" if $is_list;
}

open my $in, '<', $page or die "$page: $!\n";
my $n_references = 0;
while (my $line = <$in>) {
    if ($line eq "=for reference\n") {
        print_reference();
        ++$n_references;
    } else {
        print $line;
    }
}
die "$page: one line '=for reference', please\n" if $n_references != 1;
