"""Tables of operators for the tests of latency."""

COLUMNS = "model,op,dtype,in_shape,weight_shape,out_shape,stride,macs"
CONV = "net,CONV_2D,int8,1x32x32x16,16x3x3x16,1x32x32x16,1x1,2359296"
M7 = ("--core", "cortex-m7", "--clock-hz", 400_000_000)


def writer(path):
    """Writes a table of operators there; gives the path."""

    def write(*rows, columns=COLUMNS):
        path.write_text("\n".join([columns, *rows]) + "\n")
        return path

    return write
