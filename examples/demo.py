"""`make demo`: train the digits, fit the polytope, and say what came of it."""

import digits
import polytope


def main() -> None:
    trained = digits.main()
    print()
    fitted = polytope.main()
    print(
        f"""
  what                                              result      asked for
  digits    test accuracy                           {trained["accuracy"]:6.1%}      at least 95 %
            training time                           {trained["seconds"]:4.0f} s      under 60 s
  polytope  mean squared distance, before           {fitted["before"]:.4f}
            after 40 steps                          {fitted["after"]:.4f}      under 0.005
            on fresh points                         {fitted["held_out"]:.4f}      under 0.005

  figures   docs/figures/digits.png, docs/figures/polytope.png, docs/figures/polytope.gif"""
    )


if __name__ == "__main__":
    main()
